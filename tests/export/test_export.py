"""What is exported loads elsewhere with the same outputs; the rest is refused with a reason."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.export.agreement import Pass, largest_difference, real_passes
from finetune.export.exporting import export_run
from finetune.export.model_card import plain
from finetune.predict import load_predictor

_spec = importlib.util.spec_from_file_location(
    "export_tools", Path(__file__).with_name("export_tools.py")
)
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

ONE_LAYER = {
    "layers": [
        {
            "name": "net",
            "type": "sequential",
            "layers": [
                {"type": "Linear", "out_features": 6},
                {"type": "Linear", "out_features": 3},
            ],
        }
    ]
}
NOISE = """
import torch

class Noise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x[:, :3] * self.weight[:3] + torch.rand(1) * 1e-3
"""


@pytest.fixture
def trained(small_run, tmp_path):
    """Train a tiny network; return its folder."""

    def train(**changes):
        small_run(**changes).fit(quiet=True)
        return tmp_path / "run"

    return train


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (ONE_LAYER, {"0.weight", "0.bias", "1.weight", "1.bias"}),
        (None, {"body.weight", "body.bias", "head.weight", "head.bias"}),
    ],
    ids=["one layer", "several layers"],
)
def test_tensors_have_the_names_of_the_original_network(trained, tmp_path, model, names):
    run = trained(**({} if model is None else {"model": model}))
    done = export_run(run, "safetensors", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == names
    own = load_predictor(run).model.state_dict()
    prefix = "net." if model else ""
    assert all(found[name].equal(own[f"{prefix}{name}"]) for name in names)
    assert done.checked.difference == 0


@pytest.mark.slow
def test_every_format_gives_the_same_outputs_without_this_package(trained, tmp_path):
    run = trained()
    passes = real_passes(load_predictor(run), 40)
    samples = tools.save_passes(passes, tmp_path / "samples.safetensors")
    entries = []
    for form in ("safetensors", "torch", "onnx"):
        export_run(run, form, tmp_path / form)
        entries.append((tmp_path / form, form, samples))
    assert max(tools.fresh_process(entries)) <= 1e-5


@pytest.mark.slow
def test_a_network_of_recordings_is_compared_too(trained, tmp_path):
    for name, pitch in (("low", 200), ("high", 800)):
        (tmp_path / "tones" / name).mkdir(parents=True)
        for number in range(6):
            time = np.arange(800) / 8000
            tone = np.sin(2 * np.pi * (pitch + 10 * number) * time).astype(np.float32)
            soundfile.write(tmp_path / "tones" / name / f"{number}.wav", tone, 8000)
    source = {"type": "audiofolder", "path": str(tmp_path / "tones"), "sample_rate": 4000}
    run = trained(
        model={"layers": [{"name": "head", "type": "Linear", "out_features": "classes"}]},
        data={"source": source | {"seconds": 0.05}},
        task={"type": "classification"},
    )
    samples = tools.save_passes(real_passes(load_predictor(run), 12), tmp_path / "s.safetensors")
    done = export_run(run, "torch", tmp_path / "out")
    assert done.checked.samples == 12
    assert tools.fresh_process([(tmp_path / "out", "torch", samples)])[0] <= 1e-5


def test_the_command_tells_what_it_wrote_and_how_it_was_compared(trained, tmp_path, command_line):
    run = trained()
    done = command_line("export", run, "--format", "safetensors", "--out", tmp_path / "out")
    assert (done.code, done.out) == (0, "")
    assert "agrees with the predictor on 40 samples, largest difference 0" in done.err
    done = command_line(
        "export", run, "--format", "safetensors", "--out", tmp_path / "unseen", "--check", 0
    )
    assert "not compared with the predictor" in done.err
    card = (tmp_path / "unseen" / "README.md").read_text()
    assert "**not** compared" in card
    assert "fingerprints of frozen tensors" in card


def test_an_export_that_disagrees_with_the_predictor_leaves_nothing(trained, tmp_path, monkeypatch):
    (tmp_path / "noisy_net_of_exports.py").write_text(NOISE)
    monkeypatch.syspath_prepend(tmp_path)
    layer = {"name": "noise", "type": "import", "path": "noisy_net_of_exports:Noise"}
    package = ("noisy_net_of_exports",)
    run = trained(trust=package, model={"layers": [layer]})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FinetuneError, match="disagrees with the predictor on 40 samples"):
        export_run(run, "safetensors", tmp_path / "out", trust=package)
    assert sorted(tmp_path.iterdir()) == before


def occupied(way, out):
    match way:
        case "folder":
            out.mkdir()
            (out / "mine").write_text("mine")
        case "empty folder":
            out.mkdir()
        case "file":
            out.write_text("mine")
        case "link":
            out.symlink_to("nowhere")
        case "link to a folder":
            (out.parent / "other").mkdir()
            out.symlink_to("other")


@pytest.mark.parametrize("way", ["folder", "empty folder", "file", "link", "link to a folder"])
def test_nothing_is_replaced_and_no_link_is_followed(trained, tmp_path, command_line, way):
    run, out = trained(), tmp_path / "out"
    occupied(way, out)
    before = sorted(tmp_path.rglob("*"))
    done = command_line("export", run, "--format", "safetensors", "--out", out)
    assert done.code == 2
    assert "is there already" in done.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("form", "arguments", "reason"),
    [
        ("hf", (), "the network has 0 layers of transformers"),
        ("timm", (), "holds one network of timm with features or logits"),
        ("torch", ("--delta",), "format torch holds whole networks"),
        ("safetensors", ("--delta",), "were neither trained nor loaded from weights"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    trained, tmp_path, command_line, form, arguments, reason
):
    run = trained(freeze=["body"])
    done = command_line("export", run, "--format", form, "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert reason in done.err
    assert not (tmp_path / "out").exists()


def test_a_delta_holds_what_was_trained_and_names_its_base(trained, tmp_path):
    from safetensors import safe_open

    run = trained()
    export_run(run, "safetensors", tmp_path / "out", delta=True)
    with safe_open(tmp_path / "out" / "delta.safetensors", "pt") as file:
        assert set(file.keys()) == {"body.weight", "body.bias", "head.weight", "head.bias"}
        assert len(file.metadata()["base"]) == 32


def test_text_of_others_is_shown_as_it_is_by_markdown():
    assert plain("<b>a`[x](y)\n\u202e") == "\\<b\\>a\\`\\[x\\]\\(y\\)\\\\n\\\\u202e"


def test_an_export_of_a_run_that_has_not_ended_says_so(trained, tmp_path):
    run = trained()
    said = []
    export_run(run, "safetensors", tmp_path / "whole", check=2, tell=said.append)
    assert not any("has not reached its end" in line for line in said)
    assert "has not reached its end" not in (tmp_path / "whole" / "README.md").read_text()
    # A run that was killed has no summary.
    (run / "summary.json").unlink()
    export_run(run, "safetensors", tmp_path / "part", check=2, tell=said.append)
    assert any("the run has not reached its end: it was killed at step" in line for line in said)
    assert "it was killed at step" in (tmp_path / "part" / "README.md").read_text()


@pytest.mark.parametrize("threshold", [0.9, 0.5])
def test_a_threshold_that_no_file_holds_is_told(trained, tmp_path, threshold):
    (tmp_path / "t.csv").write_text("u,v,y\n" + "".join(f"{n},1,{'ab'[n % 2]}\n" for n in range(9)))
    run = trained(
        model={"layers": [{"name": "head", "type": "Linear", "out_features": "classes"}]},
        data={
            "source": {"type": "csv", "path": str(tmp_path / "t.csv")},
            "inputs": ["u", "v"],
            "target": "y",
            "transforms": [{"type": "stack"}],
        },
        task={"type": "classification", "threshold": threshold},
    )
    said = []
    export_run(run, "safetensors", tmp_path / "out", check=2, tell=said.append)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("from which on a label is predicted: b 0.9; the files do not" in card) is (
        threshold == 0.9
    )
    assert any("threshold" in line for line in said) is (threshold == 0.9)


def test_outputs_of_padding_are_not_compared_where_a_task_reads_tokens():
    wanted = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    other = wanted.clone()
    other[1, 2] += 1
    given = {"attention_mask": mask}
    read, whole = (Pass({}, given, {"output": wanted}, m) for m in (mask, None))
    assert largest_difference([read], lambda _: {"output": other}) == 0
    assert largest_difference([whole], lambda _: {"output": other}) > 0.1
    other[1, 1] += 1
    assert largest_difference([read], lambda _: {"output": other}) > 0.1
