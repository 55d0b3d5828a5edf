"""Whatever has happened to the newest checkpoint: one line says so, and the run ends as it would.

The corpus is made by `DAMAGES`, from the finished run of `small_runs.py`.
"""

import json
import os
import random
import shutil
import struct

import pytest

from finetune.disk import digest_of
from finetune.errors import CheckpointError
from finetune.predict import load_predictor
from finetune.runs.manifest import LARGEST_HEADER, find_fault

FILES = ["weights.safetensors", "optimizer.safetensors", "progress.json"]


def flip(path, place=None, bit=0):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(content)


def edit_manifest(folder, change):
    """Change a manifest as a stranger would who knows how it is made: its own digest goes."""
    path = folder / "MANIFEST.json"
    document = json.loads(path.read_text())
    document.pop("blake2b")
    change(document)
    path.write_text(json.dumps(document))


def with_facts_of(folder, name):
    """Make the manifest agree with what a file holds now."""
    file = folder / name
    facts = {"size_bytes": file.stat().st_size, "blake2b": digest_of(file)}
    edit_manifest(folder, lambda document: document["files"].update({name: facts}))


def huge_header(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + path.read_bytes()[8:])
    with_facts_of(folder, path.name)


def link_outside(folder, name):
    outside = folder.parent.parent / f"outside-{name}"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)


def link_the_folder(folder):
    shutil.move(folder, folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def rewrite_progress(folder, change):
    path = folder / "progress.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with_facts_of(folder, path.name)


def pipe(folder):
    (folder / "MANIFEST.json").unlink()
    os.mkfifo(folder / "MANIFEST.json")


DAMAGES = [
    *[(f"missing {n}", lambda f, n=n: (f / n).unlink(), f"{n} is missing") for n in FILES],
    *[
        (f"truncated {n}", lambda f, n=n: os.truncate(f / n, 33), f"{n} has 33 bytes, needs")
        for n in FILES
    ],
    *[
        (f"zero length {n}", lambda f, n=n: os.truncate(f / n, 0), f"{n} has 0 bytes, needs")
        for n in FILES
    ],
    *[
        (f"flipped bit in {n}", lambda f, n=n: flip(f / n), f"{n} does not match its digest")
        for n in FILES
    ],
    *[
        (f"link {n}", lambda f, n=n: link_outside(f, n), f"{n} is a link or a device, not a file")
        for n in FILES
    ],
    ("no manifest", lambda f: (f / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
    (
        "empty manifest",
        lambda f: os.truncate(f / "MANIFEST.json", 0),
        "MANIFEST.json cannot be read",
    ),
    (
        "list as manifest",
        lambda f: (f / "MANIFEST.json").write_text("[]"),
        "MANIFEST.json is no object",
    ),
    (
        "deep manifest",
        lambda f: (f / "MANIFEST.json").write_text("[" * 9000 + "]" * 9000),
        "MANIFEST.json cannot be read",
    ),
    (
        "nested manifest",
        lambda f: (f / "MANIFEST.json").write_text("[" * 70 + "]" * 70),
        "MANIFEST.json cannot be read",
    ),
    ("pipe as manifest", pipe, "MANIFEST.json cannot be read"),
    (
        "link as manifest",
        lambda f: link_outside(f, "MANIFEST.json"),
        "MANIFEST.json cannot be read",
    ),
    (
        "step changed in manifest",
        lambda f: edit_manifest(f, lambda d: d.update(step=7)),
        "holds step 6, and its manifest says 7",
    ),
    (
        "text for a number",
        lambda f: edit_manifest(f, lambda d: d.update(step="6")),
        "MANIFEST.json is damaged",
    ),
    (
        "key unknown to the manifest",
        lambda f: edit_manifest(f, lambda d: d.update(run="os.system")),
        "MANIFEST.json is damaged",
    ),
    (
        "file left out of manifest",
        lambda f: edit_manifest(f, lambda d: d["files"].pop("progress.json")),
        "MANIFEST.json does not name progress.json",
    ),
    *[
        (
            f"manifest names {name!r}",
            lambda f, name=name: edit_manifest(
                f, lambda d: d["files"].update({name: d["files"]["progress.json"]})
            ),
            f"MANIFEST.json names {name!r}, which is no plain file name",
        )
        for name in ["../config.yaml", "/etc/passwd", "..", ".", "", "a/b", "MANIFEST.json"]
    ],
    (
        "extra file",
        lambda f: (f / "extra.pt").write_bytes(b"x"),
        "holds a file that its manifest does not name: 'extra.pt'",
    ),
    (
        "extra folder",
        lambda f: (f / "extra").mkdir(),
        "holds a file that its manifest does not name: 'extra'",
    ),
    (
        "older version",
        lambda f: edit_manifest(f, lambda d: d.update(version=0)),
        "has format version 0, this release reads 1",
    ),
    (
        "newer version",
        lambda f: edit_manifest(f, lambda d: d.update(version=2)),
        "was written by a newer release: format version 2, this one reads 1",
    ),
    (
        "no version",
        lambda f: edit_manifest(f, lambda d: d.pop("version")),
        "MANIFEST.json has no format version",
    ),
    ("huge header", huge_header, f"has a header of {LARGEST_HEADER + 1} bytes, the most is"),
    ("linked folder", link_the_folder, "is a link, not a folder"),
    (
        "unknown progress",
        lambda f: rewrite_progress(f, lambda d: d["progress"].update(hook="os.system")),
        "progress.json: 'hook' is unknown or of another type",
    ),
    (
        "progress of another type",
        lambda f: rewrite_progress(f, lambda d: d["progress"].update(step="many")),
        "progress.json: 'step' is unknown or of another type",
    ),
    (
        "progress without progress",
        lambda f: rewrite_progress(f, lambda d: d.pop("progress")),
        "progress.json lacks one of",
    ),
    (
        "other step",
        lambda f: rewrite_progress(f, lambda d: d["progress"].update(step=5)),
        "holds step 5, and its manifest says 6",
    ),
]


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(unbroken[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def again(runs):
    """Build a run, and keep what it tells."""

    def build(folder, **changes):
        listener = runs.Listener()
        return runs.build(folder, listener, **changes), listener

    return build


@pytest.mark.parametrize(
    ("damage", "says"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES]
)
def test_the_run_goes_on_from_the_checkpoint_before_and_ends_the_same(
    runs, unbroken, copied, again, damage, says
):
    newest = copied / "checkpoints" / "step-00000006"
    damage(newest)
    with pytest.raises(CheckpointError) as refused:
        load_predictor(copied)
    assert says in str(refused.value).splitlines()[0]
    trainer, listener = again(copied)
    assert trainer.progress.step == 5
    (line,) = listener.lines
    assert line.startswith(f"{newest}: ")
    assert line.endswith("; passed over")
    assert says in line
    trainer.fit()
    runs.assert_same_end(runs.end_of(trainer), unbroken[1])
    assert not newest.is_symlink()
    assert trainer.saver.checkpoints.fault(newest) is None
    load_predictor(copied)


def test_any_flipped_bit_of_any_file_is_seen(copied):
    """Also in the manifest itself, at places drawn from a fixed seed."""
    folder = copied / "checkpoints" / "step-00000006"
    assert find_fault(folder) is None
    draw = random.Random(0)
    for name in (*FILES, "MANIFEST.json"):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(60):
            place = draw.randrange(len(whole))
            flip(path, place, draw.randrange(8))
            # white space between the words of a manifest may be any other
            is_blank = name == "MANIFEST.json" and chr(whole[place]).isspace()
            assert is_blank or find_fault(folder) is not None, (name, place)
            path.write_bytes(whole)


def test_several_damaged_ones_are_told_each_by_its_line(runs, unbroken, copied, again):
    for step in (4, 5, 6):
        (copied / "checkpoints" / f"step-{step:08d}" / "progress.json").unlink()
    trainer, listener = again(copied)
    told = [line.rpartition("/")[2] for line in listener.lines]
    assert told == [f"step-0000000{n}: progress.json is missing; passed over" for n in (6, 5, 4)]
    assert trainer.progress.step == 3
    trainer.fit()
    runs.assert_same_end(runs.end_of(trainer), unbroken[1])


def test_a_run_without_any_whole_checkpoint_begins_anew_and_ends_the_same(
    runs, unbroken, copied, again
):
    for path in (copied / "checkpoints").iterdir():
        flip(path / "weights.safetensors")
    trainer, listener = again(copied)
    assert (trainer.progress.step, len(listener.lines)) == (0, 6)
    trainer.fit()
    runs.assert_same_end(runs.end_of(trainer), unbroken[1])


RESTORING = {
    "phases": [
        {"name": "a", "freeze": ["body"], "until": {"steps": 4}, "restore_best": True},
        {"name": "b", "freeze": ["body", "norm"]},
    ]
}


@pytest.fixture(params=["wanted at the end", "wanted at the end of a phase"])
def wanting(runs, request):
    """Changes of a run that goes back to its best weights, those of step 2."""
    if request.param == "wanted at the end":
        return {"optimizer": runs.RUINOUS, "train": runs.saving(best="validation/loss")}
    return {"optimizer": runs.RUINOUS, "freeze": RESTORING}


@pytest.mark.parametrize("damage", [flip, None], ids=["damaged", "gone"])
def test_a_best_checkpoint_lost_is_made_again_from_one_before_it(
    runs, again, tmp_path, wanting, damage
):
    whole, _ = again(tmp_path / "whole", **wanting)
    whole.fit()
    broken, _ = again(tmp_path / "run", **wanting)
    broken.fit()
    if "freeze" in wanting:
        # as if killed in the first phase, after step 3
        for step in (4, 5, 6):
            shutil.rmtree(broken.saver.checkpoints.path_of(step))
    (broken.folder.path / "summary.json").unlink()
    best = broken.saver.checkpoints.path_of(2)
    flip(best / "weights.safetensors") if damage else shutil.rmtree(best)
    third, listener = again(tmp_path / "run", **wanting)
    assert third.progress.step == 1
    assert any("it needs the best checkpoint" in line for line in listener.lines)
    third.fit()
    runs.assert_same_end(runs.end_of(third), runs.end_of(whole))
    assert third.progress.best.step == whole.progress.best.step


def test_a_best_checkpoint_lost_for_good_gives_its_place_to_the_next(runs, again, tmp_path):
    settings = runs.saving(best="validation/loss", keep_best=2, keep_last=1, every={"steps": 6})
    changes = {"optimizer": runs.RUINOUS, "train": settings}
    first, _ = again(tmp_path / "run", **changes)
    ranking = first.fit().ranking
    assert [step for step, _ in ranking] == [2, 4]
    (first.folder.path / "summary.json").unlink()
    shutil.rmtree(first.saver.checkpoints.path_of(2))
    second, listener = again(tmp_path / "run", **changes)
    assert (second.progress.step, second.progress.best.step) == (6, 4)
    (line,) = listener.lines
    assert "step-00000002: is missing: another one will be the best" in line
    second.fit()
    assert second.evaluate(second.splits.validation)["loss"] == ranking[1][1]


def test_a_best_checkpoint_damaged_while_the_run_goes_on_ends_it_with_a_line(
    runs, again, tmp_path, wanting
):
    trainer, listener = again(tmp_path / "run", **wanting)
    best = trainer.saver.checkpoints.path_of(2) / "weights.safetensors"
    listener.at[4] = lambda: flip(best)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit()
    assert "step-00000002: weights.safetensors does not match its digest" in str(caught.value)
    assert "the same command again goes on" in str(caught.value)
    second, _ = again(tmp_path / "run", **wanting)
    second.fit()
    whole, _ = again(tmp_path / "whole", **wanting)
    whole.fit()
    runs.assert_same_end(runs.end_of(second), runs.end_of(whole))
