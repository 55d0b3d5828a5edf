"""A small run, and edits of every document and tensor in its folder with digests made to fit.

The network has all that a checkpoint could reach: parameters that never train, one that thaws
later, a parameter of which only some rows train, buffers that move and buffers that stay.
"""

import copy
import json
import math
import shutil
import struct
from dataclasses import replace

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import load, save

from finetune.config.run import RunConfig
from finetune.disk import digest_of
from finetune.errors import FinetuneError
from finetune.predict import load_predictor
from finetune.runs.doctor import examine
from finetune.runs.progress import Progress
from finetune.tracking.tracker import Tracker
from finetune.train.after.trained import evaluate_run
from finetune.train.checkpoints.delta import tensors_of
from finetune.train.checkpoints.resuming import take_up
from finetune.train.wire import build_trainer

STEPS = 5
RUN = {
    "name": "forged",
    "seed": 0,
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 3},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "mid", "type": "Linear", "out_features": 3},
            {"name": "moving", "type": "BatchNorm1d"},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 20, "features": 2, "targets": 3},
        "split": {"validation": 0.2},
    },
    "task": {"type": "regression"},
    "freeze": {
        "phases": [
            {
                "name": "top",
                "train": ["moving", {"rows": "head.weight[1:]"}, "head.bias"],
                "until": {"steps": 2},
            },
            {"name": "more", "train": ["mid", "moving", {"rows": "head.weight[1:]"}, "head.bias"]},
        ]
    },
    "optimizer": {"type": "AdamW", "lr": 0.01},
    "train": {
        "steps": STEPS,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_every": {"steps": 2},
        "checkpoint": {"every": {"steps": 1}, "keep_last": 9, "best": "validation/loss"},
        "device": "cpu",
    },
    "cache": {"use": "off"},
}
ODD_VALUES = (
    *(None, True, False, 0, 1, 2, 3, -1, 1.5, -0.5, 2**31, 2**63, -(2**63), 10**400),
    *(math.inf, -math.inf, math.nan, 1e308, 5e-324),
    *("", "nan", "NaN", "mid.weight", "top", "../../x", "\x1b[31m", "\ud800", "x" * 5000),
    *([], {}, [[]], [None], [0, 0], [-1], ["x", 1], {"x": 1}, {"x": {"x": []}}),
)
ODD_NAMES = (
    *("body.weight", "norm.weight", "norm.running_mean", "norm.num_batches_tracked"),
    *("head.weight", "head.weight[0:1]", "head.weight[0:3]", "head.weight[a:b]", "head.weight["),
    *("mid.weight", "moving.running_mean", "moving", "", "x" * 5000, "\x1b[31m", "step", "//"),
    *("body.weight//exp_avg", "head.bias//step", "head.bias//exp_avg", "head.bias//hook"),
)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


class Listener(Tracker):
    """Keeps the lines told to the person who watches."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


class Forgery:
    """A run killed before its last step, to be edited, looked at and gone on with.

    `newest` is its newest checkpoint, that of step `last`.
    """

    last = STEPS - 1

    def __init__(self, home, **changes):
        self.config = RunConfig.model_validate(RUN | changes)
        self.folder, self._origin, self._finished = home / "run", home / "killed", home / "done"
        self.newest = self.folder / "checkpoints" / f"step-{self.last:08d}"
        trainer = build_trainer(self.config, self._origin)
        self.frozen = frozen_of(trainer.model)
        trainer.fit()
        shutil.copytree(self._origin, self._finished)
        shutil.rmtree(trainer.saver.checkpoints.path_of(STEPS))
        (self._origin / "summary.json").unlink()
        shutil.copytree(self._origin, self.folder)
        self.listener = Listener()
        self.waiting = build_trainer(self.config, self.folder, fresh=True, tracker=self.listener)
        self._begun = {n: t.detach().clone() for n, t in tensors_of(self.waiting.model).items()}

    def restore(self, *, finished=False):
        """Bring the folder back as it was before any edit."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._finished if finished else self._origin, self.folder)

    def restore_newest(self):
        """Bring the newest checkpoint back as it was before any edit."""
        shutil.rmtree(self.newest)
        shutil.copytree(self._origin / "checkpoints" / self.newest.name, self.newest)

    def taken_up(self):
        """Let a trainer that has done nothing yet take up the folder; return it."""
        trainer = self.waiting
        with torch.no_grad():
            for name, tensor in tensors_of(trainer.model).items():
                tensor.copy_(self._begun[name])
        trainer.optimizer.state.clear()
        trainer.timeline.progress = Progress()
        trainer.saver.checkpoints = replace(trainer.saver.checkpoints, _judged={})
        self.listener.lines.clear()
        take_up(trainer)
        assert_frozen(trainer.model, self.frozen)
        return trainer

    def ends_or_tells(self):
        """Go on to the end of the run; return the error that was told, or None."""
        try:
            trainer = build_trainer(self.config, self.folder, tracker=self.listener)
            assert_frozen(trainer.model, self.frozen)
            trainer.fit()
        except FinetuneError as error:
            assert_told(error)
            return error
        assert_frozen(trainer.model, self.frozen)
        summary = json.loads((self.folder / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("done", STEPS)
        assert summary["proof_intact"]
        return None

    def reads_or_tells(self):
        """Predict, evaluate and examine; return the errors told, and the diagnosis last."""
        verbs = (
            lambda: load_predictor(self.folder)(torch.zeros(2, 2)) and None,
            lambda: evaluate_run(self.folder, "validation") and None,
            lambda: examine(self.folder),
        )
        return [told(verb) for verb in verbs]


def told(verb):
    """Return what a verb returns, or the error that it has told."""
    try:
        return verb()
    except FinetuneError as error:
        assert_told(error)
        return error


def assert_told(error):
    """One line that a terminal shows as it is, and perhaps indented lines below."""
    line, *more = str(error).split("\n")
    assert all(text.isprintable() for text in (line, *more)), str(error)
    assert len(str(error)) < 4000


def frozen_of(model):
    """Return copies of all that never trains."""
    tensors = tensors_of(model)
    names = (name for name in tensors if name.startswith(("body.", "norm.")))
    frozen = {name: tensors[name].detach().clone() for name in names}
    return frozen | {"head.weight[0:1]": tensors["head.weight"].detach()[0:1].clone()}


def assert_frozen(model, frozen):
    now = frozen_of(model)
    assert now.keys() == frozen.keys()
    for name, tensor in frozen.items():
        assert torch.equal(now[name], tensor), name


def resealed(folder):
    """Make sizes and digests of a manifest those of the files as they are now."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return
    manifest.pop("blake2b", None)
    for name, facts in manifest["files"].items():
        file = folder / name if "\0" not in name and len(name) < 200 else folder / "none"
        if isinstance(facts, dict) and file.is_file():
            facts |= {"size_bytes": file.stat().st_size, "blake2b": digest_of(file)}
    path.write_text(json.dumps(manifest))


def places_in(value, path=()):
    """Yield the path of every value inside plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, key))


def leaves_of(value):
    """Yield every value inside plain data that holds no other."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(inner)
    else:
        yield value


def value_at(document, path):
    for key in path:
        document = document[key]
    return document


def edited(draw, document, names=ODD_NAMES):
    """Return plain data with one value changed, swapped, removed, renamed or added."""
    document = copy.deepcopy(document)
    places = list(places_in(document))
    if not places:
        return draw(st.sampled_from(ODD_VALUES))
    path = draw(st.sampled_from(places))
    *above, key = path
    holder = value_at(document, above)
    match draw(st.sampled_from(("set", "set", "nudge", "swap", "remove", "rename", "add"))):
        case "nudge" if type(holder[key]) in (int, float):
            holder[key] += draw(st.sampled_from((-1, 1, 0.5, 10)))
        case "swap":
            other = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(value_at(document, other))
        case "remove":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[draw(st.sampled_from(names))] = holder.pop(key)
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(names))] = draw(st.sampled_from(ODD_VALUES))
        case "add":
            holder.insert(key, draw(st.sampled_from(ODD_VALUES)))
        case _:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return document


def edit_json(draw, path):
    path.write_text(json.dumps(edited(draw, json.loads(path.read_text()))))


def edit_config(draw, path):
    """Change one value of a config; large ones are left out: they ask for a large network."""
    document = edited(draw, yaml.safe_load(path.read_text()))
    if not any(type(v) is int and abs(v) > 100 for v in leaves_of(document)):
        path.write_text(yaml.safe_dump(document))


def edit_lines(draw, path):
    """Change one line of a file of JSON lines, or put other bytes in its place."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = draw(st.integers(0, len(lines) - 1))
    odd = [b"", b"\n", b"[]\n", b'{"step": 1e400}\n', b'{"step": true}\n', b"\xff\n", b"[" * 99]
    text = json.dumps(edited(draw, json.loads(lines[number]))).encode() + b"\n"
    lines[number] = draw(st.sampled_from([text, text, *odd]))
    path.write_bytes(b"".join(lines))


def edit_tensors(draw, path):
    """Change one tensor of a file: its name, shape, type or values; or remove or add one."""
    tensors = load(path.read_bytes())
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name].clone()
    match draw(st.sampled_from(("values", "values", "shape", "type", "rename", "remove", "add"))):
        case "values":
            odd = (math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1e38, -1e38, 2.0**40)
            value = draw(st.sampled_from(odd))
            if not tensor.is_floating_point():
                value = draw(st.sampled_from((-1, 0, 2**62)))
            tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
            tensors[name] = tensor
        case "shape":
            forms = (tensor[None], tensor.flatten()[:1], torch.cat([tensor.flatten()] * 2))
            tensors[name] = draw(st.sampled_from(forms)).contiguous()
        case "type":
            tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        case "rename":
            tensors[draw(st.sampled_from([*ODD_NAMES, *tensors]))] = tensors.pop(name)
        case "remove":
            del tensors[name]
        case "add":
            tensors[draw(st.sampled_from(ODD_NAMES))] = tensor + 1
    metadata = draw(st.sampled_from((None, None, None, {"x": "y" * 100_000})))
    path.write_bytes(save({n: t.clone() for n, t in tensors.items()}, metadata))


def edit_header(draw, path):
    """Change the header of a safetensors file as text, or the length that it gives itself."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = json.dumps(edited(draw, json.loads(raw[8 : 8 + length])))
    header = text.encode(errors="surrogatepass")
    told = draw(st.sampled_from((len(header), len(header), len(header), 0, 2**63, len(raw) * 2)))
    path.write_bytes(struct.pack("<Q", told) + header + raw[8 + length :])


def edit_checkpoint(draw, folder):
    """Edit one thing of a checkpoint, and make its digests fit."""
    name, edit = draw(
        st.sampled_from(
            (
                ("progress.json", edit_json),
                ("progress.json", edit_json),
                ("MANIFEST.json", edit_json),
                ("weights.safetensors", edit_tensors),
                ("weights.safetensors", edit_header),
                ("optimizer.safetensors", edit_tensors),
                ("optimizer.safetensors", edit_header),
            )
        )
    )
    edit(draw, folder / name)
    resealed(folder)
