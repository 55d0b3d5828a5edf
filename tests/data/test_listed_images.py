"""Images of a large data set are only listed at the start; each is hashed at its first reading."""

import os

import pytest
import torch
from PIL import Image

from finetune.data.hashes import contents, known_files
from finetune.data.hashes.item_contents import ItemContents
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.identify.identity import DataIdentity, RowHashes
from finetune.data.images import Images
from finetune.data.media.decoding import hash_bytes
from finetune.errors import DataError, FinetuneError

SIZES = {"a": [(20, 30), (25, 21), (40, 18)], "b": [(31, 33), (9, 50)]}
STEPS = [{"type": "Resize", "size": [12, 14]}, {"type": "RandomHorizontalFlip"}]
LAYERS = [
    {"name": "flat", "type": "Flatten"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]
LIMIT = "finetune.data.identify.identified_files._READ_AT_START_BYTES"


@pytest.fixture
def listed(monkeypatch):
    """Let files be listed, however few they are."""
    monkeypatch.setattr(LIMIT, 0)


@pytest.fixture
def options(write_images):
    source = write_images(SIZES)
    data = {"source": source, "transforms": STEPS, "workers": 0, "memory_gb": 0}
    task = {"type": "classification"}
    return {"model": {"layers": LAYERS}, "data": data, "task": task}


@pytest.fixture
def column(tmp_path):
    """A listed column of one red image."""
    path = tmp_path / "a.bmp"
    Image.new("RGB", (4, 4), "red").save(path)
    seen = ItemContents.listed([path], [path.stat().st_size], [b"name"], None)
    return Images([path], "RGB", [0], seen), path


def weights(trainer):
    return trainer.model.state_dict()


def test_the_start_hashes_no_file_and_says_so(listed, hashed, write_images, prepared):
    samples = prepared({"source": write_images(SIZES), "transforms": STEPS, "workers": 0})
    first = set(hashed)
    assert len(first) < 5  # those that tell shapes and time
    [note] = [note for note in samples.notes_on_all if "identified by name" in note]
    assert note.startswith("5 image files (0.00 GiB) are identified by name and size")
    samples.train.fetch(range(5))
    samples.train.fetch(range(5), epoch=1)
    assert len(hashed) == len(set(hashed)) == 5


def test_listed_and_hashed_images_end_with_the_same_weights(options, small_run, monkeypatch):
    here = small_run("hashed", **options)
    here.fit(quiet=True)
    monkeypatch.setattr(LIMIT, 0)
    there = small_run("listed", **options)
    there.fit(quiet=True)
    for name, tensor in weights(here).items():
        assert torch.equal(tensor, weights(there)[name])


def test_an_image_that_changes_after_its_first_reading_is_refused(column, assert_watched):
    assert_watched(*column)


def test_an_image_that_has_another_size_than_when_it_was_listed_is_refused(column):
    images, path = column
    Image.new("RGB", (9, 9), "red").save(path)
    with pytest.raises(DataError, match="has changed since the data was opened"):
        images[0]


def test_what_a_process_reads_all_processes_know(column):
    images, path = column
    process = os.fork()
    if process == 0:
        _ = images[0]
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert images.contents.is_complete
    Image.new("RGB", (4, 4), "blue").save(path)
    with pytest.raises(DataError, match="has changed since"):
        images[0]


def test_a_fingerprint_is_that_of_the_contents(column):
    images, path = column
    known = Images([path], "RGB", [0]).identified(None)
    assert images.digests() == [b"name"]
    assert images.fingerprint() == known.fingerprint()


def test_a_missing_file_is_told_with_its_row_at_the_start(listed, write_images, opened, write_csv):
    write_images(SIZES)
    source = write_csv([["image", "label"], ["images/a/0.png", "x"], ["images/a/9.png", "y"]])
    with pytest.raises(DataError, match=r"no such image file .*9\.png', which row 2 of .*names"):
        opened({"source": source, "inputs": ["image"], "target": "label"})


def test_where_exact_copies_matter_all_files_are_read(listed, hashed, write_images, opened):
    source = write_images(SIZES)
    opened({"source": source, "split": {"validation": 0.4, "copies": "together"}})
    assert len(hashed) == 5


def started_and_stopped(small_run, options):
    """Train for some steps, so that a checkpoint is there."""
    trainer = small_run("run", **options, train={"steps": 3, "batch_size": 2})
    trainer.fit(quiet=True)


def longer(small_run, options):
    return small_run("run", **options, train={"steps": 5, "batch_size": 2})


def test_a_run_on_listed_images_goes_on_whatever_the_limit_is_now(
    listed, small_run, options, monkeypatch
):
    started_and_stopped(small_run, options)
    monkeypatch.setattr(LIMIT, 512 << 20)
    assert longer(small_run, options).progress.step == 3


def test_a_run_that_knows_contents_goes_on_by_contents(
    small_run, options, monkeypatch, hashed, tmp_path
):
    started_and_stopped(small_run, options)
    monkeypatch.setattr(LIMIT, 0)
    hashed.clear()
    assert longer(small_run, options).progress.step == 3
    assert len(set(hashed)) == 5
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a" / "0.png")
    with pytest.raises(FinetuneError, match="rows: 1 changed"):
        longer(small_run, options)


def test_an_image_of_another_size_is_noticed_by_a_resumed_run(listed, small_run, options, tmp_path):
    started_and_stopped(small_run, options)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "a" / "0.png")
    with pytest.raises(FinetuneError, match="rows: 1 changed"):
        longer(small_run, options)


def test_files_of_one_name_in_two_folders_are_no_copies(listed, tmp_path, opened):
    for part, colour in (("train", "red"), ("val", "blue")):
        (tmp_path / part / "images").mkdir(parents=True)
        for number in range(3):
            path = tmp_path / part / "images" / f"{number}.bmp"
            Image.new("RGB", (4, 4), colour).save(path)
        rows = [f"images/{number}.bmp,{'ab'[number % 2]}\n" for number in range(3)]
        (tmp_path / part / "l.csv").write_text("image,label\n" + "".join(rows))
    parts = {"train": "train", "validation": "val"}
    sources = {
        name: {"type": "csv", "path": str(tmp_path / part / "l.csv")}
        for name, part in parts.items()
    }
    found = opened({**sources, "inputs": ["image"], "target": "label"})
    assert found.identity.known_by == "names"
    assert not set(found.identity.parts["train"]) & set(found.identity.parts["validation"])
    assert not [note for note in found.facts.notes if "copies" in note and "not looked" not in note]


def test_names_go_by_the_folder_of_the_table_as_before(listed, write_images, write_csv, opened):
    write_images(SIZES)
    source = write_csv([["image", "label"], ["images/a/0.png", "x"], ["images/b/0.png", "y"]])
    found = opened({"source": source, "inputs": ["image"], "target": "label"})
    column = found.train.table.columns["image"]
    size = column.items[0].stat().st_size
    assert column.contents.names[0] == hash_bytes(b"images/a/0.png\0%d" % size)


def test_names_identify_a_run_if_they_identify_the_images_of_any_part():
    parts = {"train": RowHashes.empty(1), "validation": RowHashes.empty(1)}
    parts["validation"] = parts["validation"]._replace(known_by="names")
    assert DataIdentity.of(parts, None).known_by == "names"
    assert DataIdentity.of({"train": parts["train"]}, None).known_by == "contents"


def test_of_listed_images_with_damaged_ones_only_those_are_read_again(
    hashed, column, tmp_path, monkeypatch
):
    monkeypatch.setattr(known_files, "_LEAST_BYTES", 0)
    monkeypatch.setattr(known_files, "_LEAST_CHECKED", 0)
    monkeypatch.setattr(known_files, "_SHARE_CHECKED", 0)
    monkeypatch.setattr(contents, "_RACY_NS", -(10**9))
    monkeypatch.setattr(contents, "_TICK_NS", 2**63)
    _, path = column
    missing = tmp_path / "missing.bmp"
    files = KnownFiles(1.0, tmp_path / "cache")

    def complete():
        hashed.clear()
        sizes, names = [path.stat().st_size, 9], [b"name", b"other"]
        known = ItemContents.listed([path, missing], sizes, names, files, skips=True)
        known.complete(lambda _: None)
        return known.hashes([0, 1])

    first = complete()
    assert hashed == [str(path)]
    assert complete() == first
    assert hashed == []
    missing.write_bytes(b"mended it")
    mended = complete()
    assert hashed == [str(missing)]
    assert mended[0] == first[0]
    assert mended[1] != first[1]
