"""Hashes of files: an unchanged file is not read again, a changed one always is."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.hashes import contents, known_files
from finetune.data.hashes.contents import content_of, read_contents
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.images import Images
from finetune.data.table import Listed
from finetune.errors import DataError

LONG_AGO = 1_600_000_000


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Thirty files, all of them of times that tell something; however small, they are known."""
    monkeypatch.setattr(known_files, "_LEAST_BYTES", 0)
    monkeypatch.setattr(contents, "_RACY_NS", -(10**12))
    paths = [tmp_path / f"{number:02}.bin" for number in range(30)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return paths


@pytest.fixture
def hashed(monkeypatch):
    """A list of the names of files that are read from here on."""
    names = []
    read = contents._read

    def counted(path, *what):
        names.append(path.name)
        return read(path, *what)

    monkeypatch.setattr(contents, "_read", counted)
    return names


def known(root, paths):
    files = KnownFiles(1.0, root)
    return files.contents(paths).hashes, files.notes


def put_in_place(path, content):
    """Put another file in the place of one, of equal size and time."""
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, (LONG_AGO, LONG_AGO))
    other.replace(path)


def write_over(path, content):
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))


def test_unchanged_files_are_read_once_but_for_a_share(files, hashed, tmp_path):
    first, _ = known(tmp_path / "cache", files)
    assert len(hashed) == 30
    hashed.clear()
    again, notes = known(tmp_path / "cache", files)
    assert len(hashed) == known_files._LEAST_CHECKED
    assert torch.equal(again, first)
    assert notes == []


@pytest.mark.parametrize("change", [put_in_place, write_over], ids=["replaced", "written over"])
def test_a_changed_file_of_equal_size_and_time_is_read_again(files, hashed, tmp_path, change):
    first, _ = known(tmp_path / "cache", files)
    change(files[7], b"x" * 100)
    again, notes = known(tmp_path / "cache", files)
    assert (again != first).any(1).nonzero().tolist() == [[7]]
    assert torch.equal(again, read_contents(files).hashes)
    assert notes == []
    hashed.clear()
    assert torch.equal(known(tmp_path / "cache", files)[0], again)
    assert len(hashed) == known_files._LEAST_CHECKED


def test_a_link_that_leads_to_another_file_is_read_again(files, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(files[0])
    first, _ = known(tmp_path / "cache", [link, *files])
    link.unlink()
    link.symlink_to(files[1])
    again, _ = known(tmp_path / "cache", [link, *files])
    assert not torch.equal(again[0], first[0])


def test_hashes_that_turn_out_wrong_are_all_dropped(files, tmp_path, monkeypatch):
    """Nothing tells that files have changed but the share that is read all the same."""
    known(tmp_path / "cache", files)
    monkeypatch.setattr(contents, "_as_state", lambda found: (100, 1, 1, 1))
    known(tmp_path / "other", files)
    for path in files:
        path.write_bytes(b"y" * 100)
    again, notes = known(tmp_path / "other", files)
    assert torch.equal(again, read_contents(files).hashes)
    assert len(notes) == 1
    assert "are wrong: all are read" in notes[0]


def test_a_file_that_has_just_changed_is_read_again(files, hashed, tmp_path, monkeypatch):
    """Two changes within one tick of the clock have one time."""
    monkeypatch.setattr(contents, "_RACY_NS", 2 * 10**9)
    known(tmp_path / "cache", files)
    hashed.clear()
    known(tmp_path / "cache", files)
    assert len(hashed) == 30


def test_a_file_system_without_fine_times_tells_nothing(files, hashed, tmp_path, monkeypatch):
    whole = LONG_AGO * 10**9
    monkeypatch.setattr(contents, "_as_state", lambda found: (100, whole, whole, 1))
    known(tmp_path / "cache", files)
    hashed.clear()
    known(tmp_path / "cache", files)
    assert len(hashed) == 30


def test_a_damaged_store_of_hashes_costs_time_alone(files, hashed, tmp_path):
    first, _ = known(tmp_path / "cache", files)
    [store] = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    for path in store.iterdir():
        if path.name not in ("lock", "meta.json"):
            path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    hashed.clear()
    again, _ = known(tmp_path / "cache", files)
    assert len(hashed) == 30
    assert torch.equal(again, first)


def test_where_nothing_can_be_kept_all_files_are_read(files, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    hashes, notes = known(tmp_path / "cache", files)
    assert torch.equal(hashes, read_contents(files).hashes)
    assert "hashes of files are not kept" in notes[0]


def test_few_small_files_are_not_worth_a_store(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    known(tmp_path / "cache", [tmp_path / "one"])
    assert not (tmp_path / "cache").exists()


def test_an_image_that_becomes_another_one_while_a_run_goes_on_is_refused(tmp_path, assert_watched):
    path = tmp_path / "a.bmp"
    Image.new("RGB", (4, 4), "red").save(path)
    assert_watched(Images([path], "RGB", [0]).identified(None), path)


def test_a_pipe_that_data_names_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no regular file"):
        Images([tmp_path / "pipe.png"], "RGB", [0])[0]


LONG = np.zeros((50, 50))
OTHER = LONG.copy()
OTHER[25, 25] = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([LONG], [OTHER]),  # `repr` shows neither middle
        ({"a": LONG}, {"a": OTHER}),
        ([np.array([LONG, None], object)], [np.array([OTHER, None], object)]),
        ([torch.zeros(2000)], [torch.zeros(2000).index_fill(0, torch.tensor([999]), 1)]),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ([1], ["1"]),
        ([1], [True]),
        ([1.0], [1]),
        ([b"1"], ["1"]),
    ],
)
def test_values_that_differ_have_other_contents(one, other):
    assert content_of(one) == content_of(one)
    assert content_of(one) != content_of(other)


def test_an_object_of_which_nobody_can_tell_is_never_taken_for_another():
    column = Listed([object()], "things")
    assert list(column.digests()) == [None]
    assert column.fingerprint() != column.fingerprint()
    itself = []
    itself.append(itself)
    assert content_of(itself) is None


def test_images_in_memory_of_other_colours_differ_also_where_their_pixels_do_not():
    one = Image.new("P", (2, 2))
    one.putpalette([255, 0, 0] * 256)
    other = one.copy()
    other.putpalette([0, 255, 0] * 256)
    assert Images([one], "RGB", [0]).digests() != Images([other], "RGB", [0]).digests()
