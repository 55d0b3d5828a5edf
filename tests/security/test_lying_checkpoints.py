"""Lies that the digests of a checkpoint vouch for, one by one: none of them is loaded."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.bits import fingerprint
from finetune.errors import CheckpointError
from finetune.train.checkpoints.checkpoint import load_checkpoint
from finetune.train.checkpoints.delta import tensors_of

sys.path.insert(0, str(Path(__file__).parent))
forged = importlib.import_module("forged_runs")
sys.path.pop(0)


def rewritten(path, change):
    """Change a document or the tensors of a file."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def forge(folder, name, change):
    """Change one file of a checkpoint, and make its digests fit."""
    rewritten(folder / name, change)
    forged.resealed(folder)


def set_in(*path, to):
    """Return a change of one value of a document."""
    *above, last = path

    def change(document):
        forged.value_at(document, above)[last] = to

    return change


def shortened_proof(document):
    """Shorten a proof as those of a policy's older phases are."""
    proof = document["progress"]["proofs"][0]
    proof |= {"digests": {}, "digest_over_all": ["0" * 32] * 2}


def poke(name, value):
    """Return a change of the first number of a tensor."""

    def change(tensors):
        tensors[name].view(-1)[0] = value

    return change


def also(name, tensor):
    """Return a change that adds a tensor."""
    return lambda tensors: tensors.update({name: tensor})


WEIGHTS = {
    "a tensor that never trains": also("body.weight", torch.ones(3, 2)),
    "the whole of a parameter cut into rows": also("head.weight", torch.ones(3, 3)),
    "rows that never train": also("head.weight[0:1]", torch.ones(1, 3)),
    "rows around those that train": also("head.weight[0:3]", torch.ones(3, 3)),
    "rows that are no numbers": also("head.weight[a:b]", torch.ones(1, 3)),
    "a buffer that the manifest does not name": also("norm.running_mean", torch.ones(3)),
    "a lacking tensor": lambda tensors: tensors.pop("mid.weight"),
    "another shape of as many numbers": lambda t: t.update({"mid.bias": t["mid.bias"][None]}),
    "another type": lambda t: t.update({"mid.bias": t["mid.bias"].double()}),
    "NaN": poke("mid.weight", math.nan),
    "infinity in a buffer": poke("moving.running_var", math.inf),
}
STATE = {
    "state of what never trains": also("body.weight//exp_avg", torch.ones(3, 2)),
    "state of a buffer": also("moving.running_mean//exp_avg", torch.ones(3)),
    "state of another optimizer": also("head.bias//momentum_buffer", torch.ones(3)),
    "state without one of its tensors": lambda t: t.pop("head.bias//exp_avg"),
    "steps below zero": poke("head.bias//step", -1.0),
    "infinite steps": poke("head.bias//step", math.inf),
    "half a step": poke("head.bias//step", 0.5),
    "more steps than were taken": poke("head.bias//step", 99.0),
    "a negative second moment": poke("head.bias//exp_avg_sq", -1.0),
    "a second moment that is NaN": poke("head.bias//exp_avg_sq", math.nan),
    "an infinite mean": poke("head.bias//exp_avg", math.inf),
    "steps of each number": also("head.bias//step", torch.ones(3)),
    "another type": lambda t: t.update({"head.bias//exp_avg": t["head.bias//exp_avg"].half()}),
}
PROGRESS = {
    "plain numbers of an optimizer": set_in("optimizer", "head.bias", to={"step": 3}),
    "a plain number of what never trains": set_in("optimizer", "body.bias", to={"step": 3}),
    "no state of an optimizer": set_in("optimizer", "head.bias", to=3),
    "a loss scale in float32": set_in("scaler", "scale", to=65536.0),
    "a phase that is none": set_in("progress", "phase", to=7),
    "a phase that began elsewhere": set_in("progress", "phase_began", to=3),
    "a phase that ended elsewhere": set_in("progress", "transitions", to=[3]),
    "a best step to come": set_in("progress", "best", "step", to=99),
    "a best step that no rule has chosen": set_in("progress", "phase_best", "step", to=3),
    "a ranking of texts": set_in("progress", "ranking", to=[["4", "1.0"]]),
    "a ranking of steps to come": set_in("progress", "ranking", to=[[99, 1.0]]),
    "a plateau without a rule": set_in("progress", "plateau", "is_over", to=True),
    "an early stop without a rule": set_in("progress", "stopping", "is_over", to=True),
    "no samples in a pass": set_in("progress", "micro_batch", to=0),
    "more samples in a pass than asked for": set_in("progress", "micro_batch", to=2**40),
    "lines below zero": set_in("progress", "lines", to=-1),
    "seconds below zero": set_in("progress", "seconds", "proof", to=-1),
    "seconds without end": set_in("progress", "seconds", "proof", to=math.inf),
    "a number that no float holds": set_in("progress", "best", "value", to=10**400),
    "windows left out that are none": set_in("progress", "left_out", to=[-1]),
    "no fingerprints within a phase": set_in("progress", "fingerprints", to={}),
    "another fingerprint": set_in("progress", "fingerprints", "body.weight", to="0" * 32),
    "a fingerprint of what trains": set_in("progress", "fingerprints", "mid.bias", to="0" * 32),
    "a proof without digests": set_in("progress", "proofs", 0, "digests", to={}),
    "a proof of other values": set_in(
        "progress", "proofs", 0, "digests", "body.bias", to=["0" * 32] * 2
    ),
    "a proof that failed": set_in("progress", "proofs", 0, "intact", to=False),
    "a proof of no phase": set_in("progress", "proofs", 0, "phase", to="attic"),
    "a proof of three": set_in("progress", "proofs", to=[1, 2, 3]),
    "a proof that names no tensor of a phase of a list": shortened_proof,
    "a proof that counts more tensors than it has": set_in("progress", "proofs", 0, "loaded", to=9),
}
FORGERIES = [
    *(("weights.safetensors", name, change) for name, change in WEIGHTS.items()),
    *(("optimizer.safetensors", name, change) for name, change in STATE.items()),
    *(("progress.json", name, change) for name, change in PROGRESS.items()),
    ("MANIFEST.json", "another phase", set_in("phase", to=0)),
    ("MANIFEST.json", "a parameter as a buffer", set_in("moved_buffers", to=["body.weight"])),
    ("MANIFEST.json", "buffers that are no list", set_in("moved_buffers", to={"x": 1})),
]


@pytest.fixture(scope="module")
def adam(tmp_path_factory):
    return forged.Forgery(tmp_path_factory.mktemp("adam"))


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, _, change in FORGERIES],
    ids=[f"{name.partition('.')[0]}: {what}" for name, what, _ in FORGERIES],
)
def test_a_lie_that_its_digests_vouch_for_is_passed_over_with_a_line(adam, name, change):
    adam.restore_newest()
    forge(adam.newest, name, change)
    trainer = adam.taken_up()
    assert trainer.progress.step == adam.last - 1
    (line,) = adam.listener.lines
    assert line.startswith(f"{adam.newest}: ")
    assert line.endswith("; passed over")
    assert len(line.removeprefix(str(adam.newest))) < 300


def moved_too(buffer, forgery):
    """Return a change of a manifest by who knows how the fingerprint of the base is made."""

    def change(manifest):
        manifest["moved_buffers"].append(buffer)
        base = forgery.waiting.saver.base
        manifest["base"] = base.fingerprint(frozenset(manifest["moved_buffers"]))

    return change


def test_a_buffer_of_a_frozen_norm_cannot_be_declared_to_have_moved(adam):
    """Also with the base, the fingerprints and the proof all made to agree."""
    adam.restore_newest()
    forge(adam.newest, "weights.safetensors", also("norm.running_mean", torch.ones(3)))
    forge(adam.newest, "MANIFEST.json", moved_too("norm.running_mean", adam))
    digest = fingerprint(torch.ones(3))
    forge(
        adam.newest,
        "progress.json",
        set_in("progress", "fingerprints", "norm.running_mean", to=digest),
    )
    assert adam.taken_up().progress.step == adam.last - 1
    (line,) = adam.listener.lines
    assert "'norm.running_mean' is no buffer that this run moves" in line
    predicted, evaluated, _ = adam.reads_or_tells()
    for error in (predicted, evaluated):
        assert "'norm.running_mean' is no buffer that this run moves" in str(error)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("weights.safetensors", WEIGHTS["a tensor that never trains"], "'body.weight'"),
        ("weights.safetensors", WEIGHTS["NaN"], "'mid.weight' is infinite or NaN"),
        ("optimizer.safetensors", STATE["state of what never trains"], "'body.weight'"),
        ("progress.json", PROGRESS["a best step to come"], "the step 99 of best"),
        ("progress.json", PROGRESS["a phase that began elsewhere"], "begun at step 3"),
        ("MANIFEST.json", set_in("moved_buffers", to=["mid.bias"]), "'moving.running_mean'"),
    ],
    ids=["frozen", "NaN", "state", "best", "phase", "buffers"],
)
def test_doctor_tells_a_lie_as_damage(adam, name, change, says):
    adam.restore_newest()
    forge(adam.newest, name, change)
    *_, diagnosis = adam.reads_or_tells()
    texts = {finding.label: finding.text for finding in diagnosis.findings if finding.is_damage}
    assert says in texts[adam.newest.name]
    assert diagnosis.start.name == f"step-{adam.last - 1:08d}"


def test_a_sound_run_has_no_misfit(adam):
    adam.restore()
    *_, diagnosis = adam.reads_or_tells()
    assert diagnosis.is_sound
    assert (adam.taken_up().progress.step, adam.listener.lines) == (adam.last, [])


def test_what_is_wrong_is_found_before_anything_is_changed(adam):
    """The weights are right, the state read after them is not."""
    adam.restore_newest()
    trainer = adam.taken_up()
    before = {name: t.detach().clone() for name, t in tensors_of(trainer.model).items()}
    state = dict(trainer.optimizer.state)
    forge(adam.newest, "weights.safetensors", poke("mid.weight", 0.5))
    forge(adam.newest, "optimizer.safetensors", STATE["state of what never trains"])
    with pytest.raises(CheckpointError, match="which never trains"):
        load_checkpoint(
            adam.newest, trainer.model, trainer.optimizer, trainer.saver.base, trainer.average
        )
    assert all(torch.equal(t, before[name]) for name, t in tensors_of(trainer.model).items())
    assert trainer.optimizer.state == state


def test_checkpoints_that_all_fit_another_network_are_refused_and_stay(adam):
    """To begin anew beside them would soon remove them."""
    adam.restore()
    for folder in (adam.folder / "checkpoints").iterdir():
        forge(folder, "weights.safetensors", WEIGHTS["another type"])
    before = sorted((adam.folder / "checkpoints").rglob("*"))
    error = adam.ends_or_tells()
    assert "'mid.bias' does not fit the model: it has float64[3], the model float32[3]" in str(
        error
    )
    assert "--fresh" in error.hint
    assert sorted((adam.folder / "checkpoints").rglob("*")) == before
    adam.restore()


def test_another_base_is_an_error_and_not_passed_over(adam):
    adam.restore()
    for folder in (adam.folder / "checkpoints").iterdir():
        forge(folder, "MANIFEST.json", set_in("base", to="0" * 32))
    error = adam.ends_or_tells()
    assert "the pretrained weights are not those that this run began with" in str(error)
    assert str(adam.newest) in str(error)
    adam.restore()


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary.pop("metrics"),
        set_in("metrics", to=["validation/loss"]),
        set_in("metrics", "validation/loss", to={}),
        set_in("metrics", "validation/loss", to=10**400),
        set_in("steps", to=None),
    ],
    ids=["gone", "a list", "no number", "no float", "no steps"],
)
def test_a_summary_that_lies_is_written_anew(adam, change):
    adam.restore(finished=True)
    rewritten(adam.folder / "summary.json", change)
    assert adam.ends_or_tells() is None
    metrics = json.loads((adam.folder / "summary.json").read_text())["metrics"]
    assert math.isfinite(metrics["validation/loss"])
    adam.restore()


DENSE = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENSE)
def test_what_each_optimizer_of_torch_keeps_is_known_for_its_own(tmp_path, kind):
    """A run goes on from its newest checkpoint, whatever the optimizer."""
    changes = {"optimizer": {"type": kind, "lr": 0.01}}
    if kind == "Muon":  # it takes matrices alone
        changes["freeze"] = {"phases": [{"name": "all", "train": ["mid.weight"]}]}
    forgery = forged.Forgery(tmp_path, **changes)
    assert forgery.taken_up().progress.step == forgery.last
    assert forgery.listener.lines == []
