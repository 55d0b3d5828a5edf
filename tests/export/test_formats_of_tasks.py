"""Every format of a shipped config of each task: equal outputs without this package, or a reason.

The networks of texts and images are made small; `test_real_networks.py` has whole ones.
"""

import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from finetune import build_trainer, load_config, load_predictor
from finetune.errors import FinetuneError
from finetune.export.agreement import real_passes
from finetune.export.exporting import export_run

ROOT = Path(__file__).parents[2]
for _place in ("recipes", "torture", "export"):
    sys.path.insert(0, str(ROOT / "tests" / _place))
import export_tools  # noqa: E402
import recipe_basics  # noqa: E402
import shipped  # noqa: E402

sys.path[:3] = []
SHORT = [
    "train.epochs=null", "train.steps=2", "train.batch_size=8", "train.limit=null", "cache=off",
    "tracking={to: [], report: false}",
]  # fmt: skip
EXAMPLES = "make_examples"


def on_small_bert(place, folder):
    return [f"model.layers.0.path={recipe_basics.text_network(folder / 'bert')}", place]


def one_logit(folder):
    (told,) = (
        one for one in shipped._of_recipe("recipes_of_tables", "ludwig_titanic", folder)
        if one.startswith("data.source.path=")
    )  # fmt: skip
    path = Path(told.partition("=")[2])
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *rows * 8]) + "\n")
    return [told, "data.split.test=0.7"]


def numbers(folder):
    made = shipped._made_by(EXAMPLES, "make_throws", folder / "throws.csv")
    return [made, "data.split.test=0.6"]


def notes(folder):
    made = shipped._made_by(EXAMPLES, "make_notes", folder / "notes.jsonl")
    return [*on_small_bert("data.split.test=0.6", folder), made, "data.transforms.0.max_length=16"]


def pixels(folder):
    made = shipped._made_by("make_clutter", "make_clutter", folder / "clutter.npz", count=260)
    return [made, "data.split.test=0.8"]


def pairs(folder):
    made = shipped._made_by("make_likeness", "make_likeness", folder / "likeness.csv", count=260)
    small = ["model.layers.1.out_features=16", "data.transforms.0.max_length=12"]
    return [*on_small_bert("data.split.test=0.8", folder), made, *small]


def answers(folder):
    made = shipped._made_by("make_dossiers", "make_dossiers", folder / "dossiers.jsonl", count=90)
    return [*on_small_bert("data.split.test=0.7", folder), made]


def boxes(folder):
    made = shipped._made_by("make_shapes", "make_shapes", folder / "shapes", count=222)
    images = f"data.source.folder={folder / 'shapes' / 'images'}"
    few = ["data.split={validation: 0.02, test: 0.92}", "train.batch_size=2"]
    return [f"{made}/boxes.json", images, *few]


OURS = "the network has 0 layers of transformers"
BESIDE = "layer 'head' (Linear) is beside the network 'encoder'"
NOT_TIMM = "holds one network of timm with features or logits"
DETECTOR = "torch.export cannot trace a detector"
HEADS = "BertForQuestionAnswering is none of the heads that are written"
TASKS = {
    "one logit": ("recipes/ludwig_titanic.yaml", one_logit, {"hf": OURS}),
    "regression": ("throws.yaml", numbers, {"hf": OURS}),
    "token_classification": ("notes.yaml", notes, {"hf": BESIDE}),
    "multilabel": ("mentions.yaml", notes, {"hf": BESIDE}),
    "segmentation": ("clutter_masks.yaml", pixels, {"hf": OURS}),
    "similarity": ("likeness.yaml", pairs, {"hf": BESIDE}),
    "span": ("dossiers.yaml", answers, {"hf": HEADS}),
    "detection": ("shapes.yaml", boxes, {"hf": OURS, "torch": DETECTOR, "onnx": DETECTOR}),
    "list": ("penguins_tasks.yaml", lambda _: ["data.split.test=0.6"], {"hf": OURS}),
}
_CHILD = """
import json, os, re, sys
sys.modules["finetune"] = None  # makes every import of it fail
import torch
from safetensors.torch import load_file

def chain(layers, value, between):
    *front, last = layers
    for layer in front:
        value = between(layer(value))
    return last(value)

def masks(net, inputs):
    value = inputs["image"]
    for number in "1234":
        value = torch.relu(net["norm" + number](net["conv" + number](value)))
    return net["head"](value)

def mean(net, inputs, side):
    own = {n.removeprefix(side): t for n, t in inputs.items() if n.startswith(side)}
    hidden, mask = net["encoder"](**own).last_hidden_state, own["attention_mask"].unsqueeze(-1)
    return net["head"]((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))

def answers(net, inputs):
    found = net(**inputs)
    return torch.stack([found.start_logits, found.end_logits], -1)

def several(net, inputs):
    value = torch.relu(net["hidden"](inputs["features"]))
    return {"species": net["species"](value), "depth": net["depth"](value)}

def boxes(tensors, inputs):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
    net = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=96,
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=60, rpn_post_nms_top_n_test=20)
    net.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items()})
    found = torch.zeros(len(inputs["image"]), 100, 6)
    found[..., 5] = -1
    for row, one in zip(found, net.eval()([*inputs["image"]])):
        count = len(one["scores"])
        row[:count, :4], row[:count, 4] = one["boxes"], one["scores"]
        row[:count, 5] = one["labels"] - 1
    return found

BY_HAND = {
    "one logit": lambda net, x: chain([*net.values()], *x.values(), torch.relu),
    "regression": lambda net, x: chain([*net.values()], *x.values(), torch.tanh),
    "token_classification": lambda net, x: net["head"](net["encoder"](**x).last_hidden_state),
    "multilabel": lambda net, x: mean(net, x, ""),
    "segmentation": masks,
    "similarity": lambda net, x: torch.stack([mean(net, x, s) for s in ("first.", "second.")], 1),
    "span": answers,
    "detection": boxes,
    "list": several,
}

def outputs(names, form, task, inputs):
    plain = {re.sub("[^a-z0-9A-Z]", "_", name): value for name, value in inputs.items()}
    if form == "onnx":
        session = names["session"]
        taken = [one.name for one in session.get_inputs()]
        found = session.run(None, {name: plain[name].numpy() for name in taken})
        keys = [one.name for one in session.get_outputs()]
        found = {key: torch.from_numpy(value) for key, value in zip(keys, found)}
        return found if len(found) > 1 else found.popitem()[1]
    if form == "torch":
        return names["network"](**plain)
    return BY_HAND[task](names.get("network", names.get("tensors")), inputs)

def difference(found, wanted, mask):
    if mask is not None:
        padding = (mask == 0).unsqueeze(-1)
        found, wanted = (one.masked_fill(padding, 0.0) for one in (found, wanted))
    size = wanted.reshape(len(wanted), -1).abs().amax(1).clamp(min=1)
    return float(((found - wanted).reshape(len(wanted), -1).abs().amax(1) / size).max())

told = {}
for folder, form, task, samples in json.loads(sys.argv[1]):
    os.chdir(folder)
    code = re.search(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.S)[1]
    names = {}
    exec(code, names)
    saved, largest, count = load_file(samples), 0.0, 0
    for number in sorted({name.partition("/")[0] for name in saved}):
        own = {n.split("/", 2)[2]: t for n, t in saved.items() if n.startswith(number + "/in/")}
        wanted = {n.split("/", 2)[2]: t for n, t in saved.items() if n.startswith(number + "/out/")}
        with torch.no_grad():
            found = outputs(names, form, task, own)
        found = found if isinstance(found, dict) else {"output": found}
        assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
        mask = own["attention_mask"] if task in ("token_classification", "span") else None
        largest = max(largest, *(difference(found[n], wanted[n], mask) for n in wanted))
        count += len(next(iter(own.values())))
    told[task + ", " + form] = [largest, count]
print(json.dumps(told))
"""


def trained(task, folder):
    """Train the shipped config of a task for two steps; return its run."""
    name, make, _ = TASKS[task]
    folder.mkdir()
    config = load_config(ROOT / "configs" / name, overrides=[*SHORT, *make(folder)])
    build_trainer(config, folder / "run").fit(quiet=True)
    return folder / "run"


def saved_passes(run, path):
    """Write inputs and outputs of 200 samples, each pass under its number."""
    tensors = {}
    for number, one in enumerate(real_passes(load_predictor(run), 200)):
        for way, named in (("in", one.inputs), ("out", one.outputs)):
            tensors |= {f"{number}/{way}/{name}": t.contiguous() for name, t in named.items()}
    save_file(tensors, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_format_gives_equal_outputs_or_a_reason(tmp_path, task):
    entries, reasons = [], {"timm": NOT_TIMM, **TASKS[task][2]}
    run = trained(task, tmp_path / "made")
    samples = saved_passes(run, tmp_path / "samples.safetensors")
    for form in ("safetensors", "torch", "onnx", "hf", "timm"):
        out, reason = tmp_path / form, reasons.get(form)
        if reason is None:
            assert export_run(run, form, out).checked.samples == 200
            entries.append((out, form, task, samples))
            continue
        with pytest.raises(FinetuneError) as refused:
            export_run(run, form, out)
        assert reason in refused.value.message
        assert not out.exists()
    found = export_tools.run_apart(_CHILD, entries)
    for name, (largest, count) in found.items():
        print(f"{name}: largest difference {largest:.2g} on {count} samples")
    assert {n: one for n, one in found.items() if not (one[0] <= 1e-5 and one[1] == 200)} == {}


def test_the_table_of_the_page_says_what_is_tested():
    page = (ROOT / "docs" / "export.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if ".yaml`:" in line]
    table = {re.findall("`(.*?)`", row[0])[0]: row for row in rows}
    for task, (config, _, reasons) in TASKS.items():
        row = table[config]
        for form, cell in zip(("safetensors", "torch", "onnx", "hf", "timm"), row[1:], strict=True):
            is_refused = form == "timm" or form in reasons
            assert (cell.strip() == "yes") != is_refused, (task, form, cell)
