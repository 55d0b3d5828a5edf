"""Proofs of a policy's many phases stay small on the disk, and each phase stays provable."""

import json
import shutil

import pytest

from finetune.config.run import RunConfig
from finetune.errors import FrozenWeightError
from finetune.freezing.proof import fingerprints
from finetune.freezing.proof_records import digest_over, with_bounded_digests
from finetune.runs.consistency import contradiction
from finetune.runs.doctor import examine
from finetune.runs.progress import Progress
from finetune.train.wire import build_trainer

BLOCKS, STEPS = 161, 20
TENSORS = 2 * (BLOCKS - 1)
"""Weight and bias of each block that is not drawn."""
NAMED = 4000 // TENSORS
"""Proofs that name their tensors: the newest ones, of 4,000 tensors together."""
NET = {
    "layers": [
        *({"name": f"b{n}", "type": "Linear", "out_features": 4} for n in range(BLOCKS)),
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
DRAWS = {
    "model": NET,
    "freeze": {"method": "lisa", "period": 1, "blocks": 1},
    "optimizer": {"type": "SGD", "lr": 0.01},
    "train": {"steps": STEPS, "batch_size": 16, "log_every": 100},
}


def document(run):
    return json.loads((run / "freeze_proof.json").read_text())


def record(number, count=3):
    digests = {f"weight{n}": ["a" * 32, "a" * 32] for n in range(count)}
    return {"phase": f"lisa {number}", "tensors": count, "digests": digests}


def test_the_newest_proofs_name_their_tensors_and_older_ones_have_one_digest():
    records = with_bounded_digests([record(n) for n in range(5)], most=7)
    assert [len(one["digests"]) for one in records] == [0, 0, 0, 3, 3]
    assert [one["tensors"] for one in records] == [3] * 5
    over_all = digest_over({f"weight{n}": "a" * 32 for n in range(3)})
    assert [one.get("digest_over_all") for one in records] == [[over_all] * 2] * 3 + [None] * 2


def test_shortened_one_by_one_or_all_at_once_they_are_the_same():
    together = with_bounded_digests([record(n) for n in range(9)], most=10)
    one_by_one = []
    for number in range(9):
        one_by_one = with_bounded_digests([*one_by_one, record(number)], most=10)
    assert one_by_one == together


def test_the_last_proof_names_its_tensors_however_many():
    (only,) = with_bounded_digests([record(0, count=50)], most=7)
    assert len(only["digests"]) == 50


def test_the_digest_over_all_depends_on_each_name_and_each_fingerprint():
    base = {"a": "1" * 32, "b": "2" * 32}
    others = [{"a": "2" * 32, "b": "1" * 32}, {"a": "1" * 32}, {"a": "1" * 32, "c": "2" * 32}]
    assert digest_over(dict(reversed(base.items()))) == digest_over(base)
    assert len({digest_over(one) for one in (base, *others)}) == 4


@pytest.mark.slow
def test_a_shortened_proof_is_checked_by_the_tensors_of_its_phase(small_run):
    trainer = small_run(**DRAWS)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, _: seen.append(fingerprints(module)) if module.training else None
    )
    trainer.fit()
    phases = document(trainer.folder.path)["phases"]
    assert len(phases) == len(seen) == STEPS
    older = STEPS - NAMED
    assert [len(proof["digests"]) for proof in phases] == [0] * older + [TENSORS] * NAMED
    for proof, frozen in zip(phases[:older], seen, strict=False):
        assert proof["digest_over_all"] == [digest_over(frozen)] * 2
        assert proof["tensors"] == len(frozen) == TENSORS


@pytest.mark.slow
def test_each_proof_counts_where_its_tensors_come_from_as_the_phase_ends(small_run):
    trainer = small_run(**DRAWS)
    trainer.fit()
    masks = trainer.progress.masks
    for number, proof in enumerate(document(trainer.folder.path)["phases"]):
        drawn_before = {block for mask in masks[:number] for block in mask}
        moved = 2 * len(drawn_before - set(masks[number]))
        assert (proof["trained_before"], proof["as_initialised"]) == (moved, TENSORS - moved)


@pytest.mark.slow
def test_phases_of_a_list_name_all_their_tensors_however_many(small_run):
    phases = [
        {"name": f"only {n}", "train": [f"b{n}", "head"], "until": {"steps": 1}}
        for n in range(STEPS)
    ]
    trainer = small_run(**DRAWS | {"freeze": {"phases": phases}})
    trainer.fit()
    proofs = document(trainer.folder.path)["phases"]
    assert [len(proof["digests"]) for proof in proofs] == [TENSORS] * STEPS


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_proofs(small_run):
    small_run("whole", **DRAWS).fit()
    saved = DRAWS | {
        "train": DRAWS["train"] | {"checkpoint": {"every": {"steps": 1}, "keep_last": STEPS}}
    }
    cut = small_run("cut", **saved)
    cut.fit()
    for step in range(NAMED, STEPS):
        shutil.rmtree(cut.saver.checkpoints.path_of(step + 1))
    (cut.folder.path / "summary.json").unlink()
    (cut.folder.path / "freeze_proof.json").unlink()
    resumed = small_run("cut", **saved)
    assert resumed.progress.step == NAMED
    resumed.fit()
    whole = resumed.folder.path.parent / "whole"
    assert document(resumed.folder.path) == document(whole)


def test_a_frozen_tensor_that_changes_is_named_also_after_many_draws(small_run):
    trainer = small_run(**DRAWS)
    moved = []

    def spoil(module, _):
        if module.training and trainer.progress.step == STEPS - 3:
            moved.append(next(n for n, p in module.named_parameters() if not p.requires_grad))
            module.get_parameter(moved[0]).data.add_(1)

    trainer.model.register_forward_pre_hook(spoil)
    with pytest.raises(FrozenWeightError, match=f"1 of {TENSORS} frozen tensors changed in phase"):
        trainer.fit()
    told = document(trainer.folder.path)
    assert not told["intact"]
    assert (len(told["phases"]), told["phases"][-1]["changed"]) == (STEPS - 2, moved)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A finished run of many draws."""
    data = {"source": {"type": "random", "samples": 48, "features": 4, "targets": 3}}
    task = {"type": "regression"}
    config = RunConfig.model_validate(DRAWS | {"name": "drawn", "data": data, "task": task})
    trainer = build_trainer(config, tmp_path_factory.mktemp("drawn") / "run")
    trainer.fit(quiet=True)
    return trainer


def plain(progress):
    """Return a progress as it comes from its file."""
    return json.loads(json.dumps(progress.to_json()))


def test_a_checkpoint_without_counts_is_loaded_and_they_are_made_again(drawn):
    counts = ("loaded", "as_initialised", "trained_before", "constants")
    values = plain(drawn.progress)
    values["proofs"] = [
        {name: value for name, value in proof.items() if name not in counts}
        for proof in values["proofs"][-NAMED:]
    ]
    old = Progress.from_json(values)
    assert contradiction(old) is None
    told = drawn.saver.prover.origins(drawn.timeline)
    assert drawn.saver.prover.origins(drawn.timeline.at(old)) == told[-NAMED:]


def test_doctor_counts_shortened_proofs_and_sees_a_digest_that_differs(drawn):
    run, path = drawn.folder.path, drawn.folder.path / "freeze_proof.json"
    honest = path.read_text()

    def told():
        return {one.label: one.text for one in examine(run).findings}["proof"]

    assert told() == f"intact: {STEPS * TENSORS} fingerprints equal over {STEPS} phases"
    edited = document(run)
    edited["phases"][4]["digest_over_all"][1] = "0" * 32
    path.write_text(json.dumps(edited))
    assert told() == "failed: frozen tensors changed, 1 in phase 'lisa 4'"
    path.write_text(honest)


def set_to(**values):
    return lambda proof: proof.update(values)


LIES = {
    "another digest after": set_to(digest_over_all=["0" * 32, "1" * 32]),
    "no pair": set_to(digest_over_all=["0" * 32]),
    "digests that are no texts": set_to(digest_over_all=[1, 1]),
    "no tensors": set_to(tensors=0, loaded=0, as_initialised=0),
    "counts of more tensors": set_to(loaded=5),
    "a count below zero": lambda proof: proof.update(
        loaded=-1, as_initialised=proof["as_initialised"] + 1
    ),
    "a count that is no number": set_to(loaded=0.0),
    "no counts": lambda proof: [proof.pop(name) for name in ("loaded", "constants")],
    "digests as well": set_to(digests={"head.bias": ["0" * 32] * 2}),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_shortened_proof_that_cannot_be_is_known(drawn, lie):
    values = plain(drawn.progress)
    assert contradiction(Progress.from_json(values)) is None
    lie(values["proofs"][0])
    assert "proof 0 is" in (contradiction(Progress.from_json(values)) or "")


def test_a_shortened_proof_of_fewer_tensors_than_the_draw_freezes_is_passed_over(drawn):
    checkpoints = drawn.saver.checkpoints
    path = checkpoints.path_of(STEPS) / "progress.json"
    saved = json.loads(path.read_text())
    assert checkpoints.misfit(path.parent) is None
    saved["progress"]["proofs"][0].update(tensors=TENSORS - 2, loaded=0, as_initialised=TENSORS - 2)
    path.write_text(json.dumps(saved))
    assert "the proof of 'lisa 0' names no tensors" in checkpoints.misfit(path.parent)
