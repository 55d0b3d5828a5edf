"""A large file of COCO is read entry by entry, to the same columns; equal names are told."""

import json
import random

import pytest

from finetune import reading
from finetune.data.readers import json_lists, json_text
from finetune.data.sources import coco
from finetune.errors import DataError, FinetuneError

KEPT = {"images": ("id", "name"), "marks": ("at",)}


@pytest.fixture(params=[1, 5, 64], ids="pieces of {}".format)
def in_pieces(request, monkeypatch):
    """Read files in very small pieces, so that everything is cut somewhere."""
    monkeypatch.setattr(json_text, "_READ_AT_ONCE", request.param)


def written(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    return path


def drawn(draw, depth=0):
    """Return a value that JSON can hold, of any kind."""
    plain = [draw.uniform(-1e9, 1e9), draw.randrange(10**12), None, True, 'a"[{\\ü', ""]
    if depth > 3 or draw.random() < 0.5:
        return draw.choice(plain)
    values = [drawn(draw, depth + 1) for _ in range(draw.randrange(4))]
    return values if draw.random() < 0.5 else {f"k{n}": v for n, v in enumerate(values)}


def test_lists_are_those_that_json_reads_whatever_is_around_them(tmp_path, in_pieces):
    draw = random.Random(0)
    for number in range(30):
        entries = [{"id": n, "name": drawn(draw), "more": drawn(draw)} for n in range(3)]
        document = {"info": drawn(draw), "images": entries, "n": number, "marks": [1, "a", []]}
        indent = draw.choice([None, 2])
        found = json_lists.read_lists(written(tmp_path, json.dumps(document, indent=indent)), KEPT)
        slim = [{"id": one["id"], "name": one["name"]} for one in entries]
        assert found == {"images": slim, "marks": [1, "a", []]}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"images": [{}', '{"images": [1 2]}', '{"images": [1,]}', '{"images": [],}',
     '{"images": []} {}', '{1: []}', '{"images": [}', '{"images": [nul]}', '{"images" [1]}'],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path, in_pieces, text):
    with pytest.raises(FinetuneError, match="not JSON"):
        json_lists.read_lists(written(tmp_path, text), KEPT)


def test_a_list_that_is_passed_over_may_be_larger_than_a_value(tmp_path, monkeypatch):
    for module in (json_text, reading):
        monkeypatch.setattr(module, "MAX_JSON_BYTES", 100)
    monkeypatch.setattr(json_text, "_READ_AT_ONCE", 10)
    document = {"outlines": [{"at": n} for n in range(50)], "images": [{"id": 1}]}
    found = json_lists.read_lists(written(tmp_path, json.dumps(document)), KEPT)
    assert found == {"images": [{"id": 1}]}


def test_a_list_that_is_there_twice_and_a_file_over_the_limit_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FinetuneError, match="has the key 'images' twice"):
        json_lists.read_lists(written(tmp_path, '{"images": [1], "images": [2]}'), KEPT)
    monkeypatch.setattr(json_lists, "MAX_LISTS_BYTES", 8)
    with pytest.raises(FinetuneError, match="at most 0 GiB are read"):
        json_lists.read_lists(written(tmp_path, '{"images": [1]}'), KEPT)


def boxes(names=("cat", "dog", "cat")):
    """Return a document of COCO with a category for each name, and outlines that nobody reads."""
    outline = {"segmentation": [[0.5] * 40], "area": 9.0}
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 9} for n in range(6)],
        "annotations": [
            {"image_id": n % 5, "category_id": n % 3, "bbox": [1, 2, 3 + n, 4.5], **outline}
            | ({"iscrowd": 1} if n == 7 else {"iscrowd": 0})
            for n in range(20)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
    }


def test_a_large_file_of_coco_gives_what_a_small_one_gives(tmp_path, in_pieces, monkeypatch):
    path = written(tmp_path, json.dumps(boxes()))
    small = coco.read_coco(path, ())
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 100)
    large = coco.read_coco(path, ())
    assert {n: c.values for n, c in large.columns.items()} == {
        n: c.values for n, c in small.columns.items()
    }
    assert len(large.columns["objects"].values) == 6
    path.write_text("[1" + ", 1" * 100 + "]")
    with pytest.raises(DataError, match="not JSON"):
        coco.read_coco(path, ())


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat", "dog", "cat"), ["categories '0', '2' are all called 'cat': their boxes are learnt "
                                 "as one class; other names keep them apart"]),
        (("cat", "dog", "hen"), []),
        (("cat", "dog", "hen", "hen"), []),
    ],
    ids=["with boxes", "distinct", "one without boxes"],
)  # fmt: skip
def test_categories_of_one_name_are_told_where_both_have_boxes(tmp_path, names, told):
    found = coco.read_coco(written(tmp_path, json.dumps(boxes(names))), ())
    assert list(found.notes) == told
