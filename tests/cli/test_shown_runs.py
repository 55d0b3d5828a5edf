"""Runs bear the names of their folders, and the page begins with the loss."""

import json
import os
from urllib.parse import unquote

import pytest

from finetune.cli.shown_runs import refresh
from finetune.tracking.first_page import first_page

EVENTS = "events.out.tfevents.1.x"


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for run in ("one/tensorboard", "sweep/trial-0/tensorboard", "of another program"):
        (folder / run).mkdir(parents=True)
        (folder / run / EVENTS).write_text(run)
    return folder


def shown(runs, links):
    links.mkdir(exist_ok=True)
    refresh(runs, links)
    files = [path for path in links.rglob("*") if path.is_symlink()]
    return {path.parent.relative_to(links).as_posix(): path.read_text() for path in files}


def test_a_run_has_the_name_of_its_folder(runs, tmp_path):
    assert shown(runs, tmp_path / "links") == {
        "one": "one/tensorboard",
        "sweep/trial-0": "sweep/trial-0/tensorboard",
        "of another program": "of another program",
    }


@pytest.mark.parametrize("part", ["one", "one/tensorboard"])
def test_a_single_run_has_its_name_too(runs, tmp_path, part):
    assert shown(runs / part, tmp_path / "links") == {"one": "one/tensorboard"}


def test_later_runs_appear_and_removed_and_renamed_ones_go(runs, tmp_path):
    shown(runs, tmp_path / "links")
    (runs / "one").rename(runs / "two")
    (runs / "sweep" / "trial-0" / "tensorboard" / EVENTS).unlink()
    assert shown(runs, tmp_path / "links").keys() == {"two", "of another program"}
    assert {path.name for path in (tmp_path / "links").iterdir()} == {"two", "of another program"}


def test_a_second_event_file_of_a_resumed_run_is_in_the_same_run(runs, tmp_path):
    (runs / "one" / "tensorboard" / "events.out.tfevents.2.x").write_text("later")
    shown(runs, tmp_path / "links")
    assert len(list((tmp_path / "links" / "one").iterdir())) == 2


def test_of_links_only_those_to_runs_beside_them_are_followed(runs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / EVENTS).write_text("private")
    (runs / "best").symlink_to("one")
    (runs / "foreign").symlink_to(tmp_path / "elsewhere")
    (runs / "one" / "deep").symlink_to(tmp_path / "elsewhere")
    (runs / "one" / "tensorboard" / "events.out.tfevents.3.x").symlink_to("/etc/hostname")
    found = shown(runs, tmp_path / "links")
    assert found["best"] == found["one"] == "one/tensorboard"
    assert found.keys() == {"best", "one", "sweep/trial-0", "of another program"}


PROJECTOR = ("projector_config.pbtxt", "embedding.tsv")


@pytest.fixture
def projector(runs):
    """Files of the projector in two runs; return the folder of the first."""
    for run in ("one", "sweep/trial-0"):
        for name in PROJECTOR:
            (runs / run / "tensorboard" / name).write_text(f"{name} of {run}")
    return runs / "one" / "tensorboard"


def copied(runs, links):
    """Return the text of each copy, and refresh before."""
    shown(runs, links)
    files = [path for path in links.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.relative_to(links).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("part", [".", "one", "one/tensorboard"])
def test_files_of_the_projector_are_copied_and_follow_changes(runs, projector, tmp_path, part):
    links = tmp_path / "links"
    found = copied(runs / part, links)
    names = {f"{run}/{name}" for run in ("one", "sweep/trial-0") for name in PROJECTOR}
    assert found.keys() == (names if part == "." else {f"one/{name}" for name in PROJECTOR})
    (projector / "embedding.tsv").write_text("longer, and later")
    os.utime(projector / "embedding.tsv", (1, 1))
    assert copied(runs / part, links)["one/embedding.tsv"] == "longer, and later"
    (projector / "embedding.tsv").unlink()
    assert "one/embedding.tsv" not in copied(runs / part, links)


def test_files_of_other_names_or_places_are_not_copied(runs, projector, tmp_path):
    (projector / "embedding_of_mine.tsv").write_text("x")
    (projector / "embeddings.npy").write_text("x")
    for folder in (runs, runs / "one", runs / "of another program"):
        (folder / "embedding.tsv").write_text("x")
    (projector / "embedding_labels.tsv").symlink_to("/etc/hostname")
    assert len(copied(runs, tmp_path / "links")) == 2 * len(PROJECTOR)


def test_a_file_that_cannot_be_copied_is_told_and_hides_no_other_one(runs, projector, tmp_path):
    links = tmp_path / "links"
    # A second name: a copy might give away a private file.
    (tmp_path / "private").write_text("private")
    (projector / "embedding.tsv").unlink()
    (projector / "embedding.tsv").hardlink_to(tmp_path / "private")
    links.mkdir()
    (line,) = refresh(runs, links)
    assert line.startswith(f"{projector / 'embedding.tsv'} is not shown: bears another name")
    assert copied(runs, links).keys() == {
        "one/projector_config.pbtxt",
        *(f"sweep/trial-0/{name}" for name in PROJECTOR),
    }


def pinned(page):
    assert page.endswith("#timeseries")
    query = unquote(page.removeprefix("?pinnedCards=").removesuffix("#timeseries"))
    return [card["tag"] for card in json.loads(query)]


def test_the_losses_are_pinned_before_there_is_a_run(tmp_path):
    assert pinned(first_page(tmp_path)) == ["train/loss", "validation/loss"]


def test_the_main_metric_is_that_of_the_newest_run(tmp_path):
    for number, metric in enumerate(("accuracy", "r2")):
        file = tmp_path / metric / "metrics.jsonl"
        file.parent.mkdir()
        figures = {"step": 1, "validation/loss": 0.5, f"validation/{metric}": 1, "validation/z": 1}
        file.write_text('{"step": 1, "train/loss": 1}\n' + json.dumps(figures) + "\n")
        os.utime(file, (number, number))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.jsonl").write_text("no json\n")
    assert pinned(first_page(tmp_path)) == [
        "train/loss", "validation/loss", "validation/r2", "train/r2"
    ]  # fmt: skip
