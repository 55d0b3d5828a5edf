"""Folders and files as people have them, odd ones among them, made small."""

import json
import os
import wave
from pathlib import Path

import numpy as np
from PIL import Image


def table(path, header, rows, separator=",", encoding="utf-8"):
    lines = [separator.join(map(str, row)) for row in [header, *rows]]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def picture(path, size=(12, 9), mode="RGB", low=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(str(path)))
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    Image.fromarray(draw.integers(low, low + 100, shape).astype(np.uint8), mode=None).save(path)
    return path


def semicolons_and_latin_1(folder):
    rows = [[n, ["Köln", "Bonn", "Zürich"][n % 3], n % 5 + n % 3, "ja" if n % 2 else "nein"]
            for n in range(40)]  # fmt: skip
    return table(folder / "a.csv", ["nr", "stadt", "menge", "kauf"], rows, ";", "cp1252")


def tabs_and_gaps(folder):
    rows = [[n * 0.5, "NA" if n % 9 == 0 else n % 7, "" if n % 8 == 0 else "xy"[n % 2], n % 3]
            for n in range(60)]  # fmt: skip
    return table(folder / "b.tsv", ["a", "b", "c", "class"], rows, "\t")


def json_lines(folder):
    rows = [{"size": n % 6, "colour": ["red", "blue"][n % 2], "label": n % 2} for n in range(30)]
    rows = [row | {"shape": [1.0 * (n % 4), 2.0]} for n, row in enumerate(rows)]
    path = folder / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def parquet(folder):
    import pyarrow
    from pyarrow import parquet as files

    columns = {"width": [n % 7 * 1.5 for n in range(50)], "grade": ["a", "b"] * 25}
    files.write_table(pyarrow.table(columns), folder / "d.parquet")
    return folder


def train_and_test_tables(folder):
    rows = [[n % 7, n % 5 * 2.5, n % 2] for n in range(40)]
    table(folder / "train.csv", ["a", "b", "Survived"], rows)
    table(folder / "test.csv", ["a", "b"], [row[:2] for row in rows])
    return folder


def parts_with_classes(folder):
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in ("cat", "dog"):
            for n in range(count):
                picture(folder / "pets" / part / label / f"{n}.png", (20 + n, 16))
    return folder / "pets"


def odd_images(folder):
    for n in range(12):
        for place, mode in enumerate(("RGB", "L", "RGBA")):
            picture(folder / f"k{place}" / f"{n}.png", (5 + 9 * n, 40 - 3 * n), mode, 70 * place)
    (folder / "notes.md").write_text("beside the images")
    return folder


def images_of_a_table(folder):
    rows = [[f"{n}.jpg", ["late", "early"][n % 2], n] for n in range(20)]
    for n in range(20):
        picture(folder / "img" / f"{n}.jpg", low=n % 2 * 120)
    table(folder / "labels.csv", ["filename", "label", "nr"], rows)
    return folder


def labels_in_names(folder):
    for n in range(24):
        picture(folder / f"{['oak', 'elm'][n % 2]}_{n:03}.png", low=n % 2 * 120)
    return folder


def recordings(folder):
    for n in range(24):
        path = folder / ["low", "high"][n % 2] / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = np.sin(np.arange(8000) * (0.05 + 0.3 * (n % 2))) * 9000
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, len(sound), "NONE", "not compressed"))
            file.writeframes(sound.astype("<i2").tobytes())
    return folder


def arrays_with_parts(folder):
    draw = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 20)):
        y = np.arange(count) % 3
        parts |= {f"x_{part}": draw.integers(0, 99, (count, 8, 8), np.uint8) + y[:, None, None]}
        parts |= {f"y_{part}": y}
    np.savez(folder / "digits.npz", **parts)
    return folder / "digits.npz"


def vectors(folder):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(50, 6)).astype(np.float32)
    np.savez(folder / "v.npz", x=x, y=(x[:, 0] * 300 + 5000).astype(np.float32))
    return folder / "v.npz"


def masks(folder):
    for n in range(12):
        picture(folder / "images" / f"{n}.png", (16, 16))
        (folder / "masks").mkdir(exist_ok=True)
        half = np.zeros((16, 16), np.uint8)
        half[:, n % 8 :] = 255
        Image.fromarray(half).save(folder / "masks" / f"{n}.png")
    rows = [[f"images/{n}.png", f"masks/{n}.png"] for n in range(12)]
    return table(folder / "pairs.csv", ["image", "mask"], rows)


def titanic(folder):
    header = ["PassengerId", "Survived", "Pclass", "Name", "Sex", "Age", "Ticket", "Fare", "Cabin"]
    rows = [
        [n, n // 2 % 2, 1 + n % 3, f'"Doe, Mr. {n}"', ["male", "female"][n % 2],
         "" if n % 7 == 0 else n % 60, f"A/5 {n}", round(5 + n * 0.37 % 80, 4),
         f"C{n}" if n % 5 == 0 else ""]
        for n in range(80)
    ]  # fmt: skip
    return table(folder / "titanic.csv", header, rows)


def shards_of_the_hub(folder):
    import pyarrow
    from pyarrow import parquet as files

    (folder / "data").mkdir()
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    for name, first in zip(names, (0, 40, 80), strict=True):
        rows = range(first, first + 40)
        columns = {"width": [n * 1.5 for n in rows], "grade": ["a", "b"] * 20}
        files.write_table(pyarrow.table(columns), folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("A data set")
    return folder


def named_images_and_a_test_without_labels(folder):
    for n in range(24):
        picture(folder / "train" / f"{['cat', 'dog'][n % 2]}.{n // 2}.jpg", low=n % 2 * 120)
    for n in range(4):
        picture(folder / "test" / f"{n}.jpg")
    return folder


def images_beside_their_table(folder):
    folder = folder.parent  # where the command is called
    for n in range(20):
        picture(folder / f"{n}.jpg", low=n % 2 * 120)
    table(folder / "ages.csv", ["file", "age"], [[f"{n}.jpg", n * 2.5] for n in range(20)])
    return "."


def texts_twice(folder):
    rows = [[f"the parcel number {n % 35} came much too late", "ab"[n % 2]] for n in range(50)]
    return table(folder / "mails.csv", ["text", "label"], rows)


def codes_to_learn(folder):
    return table(folder / "t.csv", ["a", "zone"], [[n % 9, f"0{n % 3}"] for n in range(60)])


def classes_called_mask(folder):
    for label, count in (("mask", 12), ("no_mask", 14)):
        for n in range(count):
            picture(folder / label / f"{n}.png", (40, 30), low=len(label) * 20)
    return folder


def texts_of_class_mask(folder):
    for n in range(24):
        path = folder / ["mask", "none"][n % 2] / f"{n // 2}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"the parcel number {n} came much too late")
    return folder


def classes_beside_products(folder):
    images = odd_images(folder)
    record = {"images": ["k0/1.png"], "categories": ["a"], "annotations": []}
    (folder / "products.json").write_text(json.dumps({"version": 1, "products": [record]}))
    (folder / "more.json").write_text("\n".join(map(json.dumps, [record, record])))
    return images


def shards_of_packed_lines(folder):
    import gzip

    for shard in range(2):
        rows = [
            {"width": n * 1.5, "grade": "ab"[n % 2]} for n in range(40 * shard, 40 + 40 * shard)
        ]
        raw = gzip.compress("\n".join(map(json.dumps, rows)).encode())
        (folder / f"Train-0000{shard}-of-00002.jsonl.gz").write_bytes(raw)
    return folder


def numbered_images_as_a_test(folder):
    named_images_and_a_test_without_labels(folder)
    for n in range(1000, 3000, 250):
        picture(folder / "test" / f"{n}.jpg")
    (folder / "val").mkdir()
    for label in ("cat", "dog"):
        picture(folder / "val" / f"{label}.99.jpg")
    return folder


def read_me_beside_a_table(folder):
    (folder / "README.md").write_text("What the columns mean")
    (folder / "LICENSE").write_text("MIT")
    return table(
        folder / "cars.csv", ["hp", "kind"], [[n % 9, "ab"[n % 2]] for n in range(60)]
    ).parent


def more_classes_than_a_part_has_rows(folder):
    rows = [[n % 11, n % 5, f"kind {n % 7}"] for n in range(40)]
    return table(folder / "t.csv", ["a", "b", "kind"], rows)


def images_of_tables_of_parts(folder):
    for part, count in (("train", 30), ("test", 9)):
        for n in range(count):
            picture(folder / part / f"{n}.jpg", low=n % 2 * 120)
        rows = [[f"{n}.jpg", ["late", "early"][n % 2]] for n in range(count)]
        table(folder / f"{part}.csv", ["image", "when"], rows)
    table(folder / "sample_submission.csv", ["image", "when"], [["0.jpg", "late"]])
    return folder


def recordings_of_a_table(folder):
    recordings(folder)
    rows = [[f"{label}/{n}.wav", label] for n in range(24) for label in (["low", "high"][n % 2],)]
    return table(folder / "labels.csv", ["clip", "pitch"], rows).parent


def tables_in_folders_of_parts(folder):
    for part, count in (("train", 60), ("test", 20)):
        (folder / part).mkdir()
        rows = [[n % 7, n % 5, "xy"[n % 2]] for n in range(count)]
        table(folder / part / "data.csv", ["a", "b", "label"], rows)
    return folder


def lists_that_begin_empty(folder):
    rows = [{"tags": ["a"] * (n % 3), "size": n % 7, "label": n % 2} for n in range(60)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def a_class_called_null(folder):
    for label in ("null", "NA", "other"):
        for n in range(12):
            picture(folder / label / f"{n}.png", (40, 30), low=len(label) * 20)
    return folder


WORKS = {
    "a README beside a table": (read_me_beside_a_table, [], ["target: kind"]),
    "more classes than a part has rows": (
        more_classes_than_a_part_has_rows,
        [],
        ["target: kind", "split: {validation: 0.15, test: 0.15}\n"],
    ),
    "tables of parts that name images": (
        images_of_tables_of_parts,
        ["--model", "convnet"],
        ["train.csv", "test.csv", "data/train", "data/test", "target: when"],
    ),
    "a table of names of recordings": (recordings_of_a_table, [], ["type: csv", "target: pitch"]),
    "tables in folders of parts": (
        tables_in_folders_of_parts,
        [],
        ["data/train/data.csv", "data/test/data.csv"],
    ),
    "lists that begin empty": (lists_that_begin_empty, [], ["inputs: [size]"]),
    "classes called null and NA": (a_class_called_null, ["--model", "convnet"], ["imagefolder"]),
    "codes to learn": (codes_to_learn, [], ["type: classification", "target: zone"]),
    "a class called mask": (classes_called_mask, ["--model", "convnet"], ["type: imagefolder"]),
    "texts of a class called mask": (texts_of_class_mask, [], ["type: textfolder"]),
    "classes beside products": (classes_beside_products, ["--model", "convnet"], ["imagefolder"]),
    "shards of packed lines": (shards_of_packed_lines, [], ["Train-*.jsonl.gz"]),
    "labels in names of a small part": (
        numbered_images_as_a_test,
        ["--model", "convnet"],
        ["validation:", "data/val"],
    ),
    "semicolons, latin-1": (semicolons_and_latin_1, [], ["encoding: cp1252", "separator: ;"]),
    "tabs, gaps, marks": (tabs_and_gaps, [], ["missing: [NA]", "flag: true", "target: class"]),
    "JSON lines": (json_lines, ["--inputs", "size,colour"], ["type: json", "target: label"]),
    "a folder with a Parquet file": (parquet, [], ["type: parquet", "target: grade"]),
    "train.csv and a test.csv without labels": (train_and_test_tables, [], ["target: Survived"]),
    "folders of parts": (parts_with_classes, ["--model", "convnet"], ["validation:", "pets/val"]),
    "images of odd sizes and modes": (odd_images, ["--model", "convnet"], ["imagefolder"]),
    "a table of image names": (images_of_a_table, ["--model", "convnet"], ["folder: ", "rgb"]),
    "labels in names": (labels_in_names, ["--model", "convnet"], ["regex"]),
    "recordings": (recordings, [], ["audiofolder", "seconds"]),
    "arrays of two parts": (arrays_with_parts, [], ["x_train", "y_test", "Conv2d"]),
    "vectors": (vectors, [], ["standardize", "affine"]),
    "masks of black and white": (masks, [], ["segmentation", "ignore_index: null"]),
    "shards of the hub": (shards_of_the_hub, [], ["train-*.parquet", "test-00000-of-00001"]),
    "labels in names, a test without labels": (
        named_images_and_a_test_without_labels,
        ["--model", "convnet"],
        ["regex", "split:"],
    ),
    "images beside their table": (
        images_beside_their_table,
        ["--model", "convnet"],
        ["type: regression"],
    ),
    "texts that occur twice": (texts_twice, [], ["copies: together"]),
    "Kaggle's table": (titanic, [], ["inputs: [Pclass, Sex, Age, Fare]", "most_frequent"]),
}
"""Maker, arguments, and what the config must hold."""


def nothing(folder):
    return folder


def a_run(folder):
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "config.yaml").write_text("seed: 0")
    return folder


def a_config(folder):
    (folder / "c.yaml").write_text("seed: 0")
    return folder / "c.yaml"


def an_image(folder):
    return picture(folder / "one.png")


def unlabelled_images(folder):
    for name in ("a", "b", "c", "d", "e"):
        picture(folder / f"{name}.png")
    return folder


def unlabelled_texts(folder):
    for name in "abcde":
        (folder / f"{name}.txt").write_text("some words")
    return folder


def lines_of_text(folder):
    (folder / "lines.txt").write_text("one line\nanother line\n" * 20)
    return folder / "lines.txt"


def no_header(folder):
    return table(folder / "n.csv", [1.5, 2, 0], [[n, n * 2, n % 2] for n in range(30)])


def a_zip(folder):
    (folder / "data.zip").write_bytes(b"PK\x03\x04" + bytes(99))
    return folder / "data.zip"


def four_rows(folder):
    return table(folder / "t.csv", ["a", "label"], [[n, n % 2] for n in range(4)])


def one_class(folder):
    return table(folder / "t.csv", ["a", "b", "label"], [[n % 4, n, "x"] for n in range(30)])


def only_ids(folder):
    return table(folder / "t.csv", ["id", "label"], [[n, n % 2] for n in range(30)])


def targets_missing(folder):
    rows = [[n % 4, "" if n < 3 else n % 2] for n in range(30)]
    return table(folder / "t.csv", ["a", "label"], rows)


def an_image_is_missing(folder):
    """Its table has columns of numbers too, from which nobody wants to learn."""
    images_of_a_table(folder)
    (folder / "img" / "7.jpg").unlink()
    head, *rows = (folder / "labels.csv").read_text().splitlines()
    sized = [f"{row},{200 + n % 7},{300 - n % 5}" for n, row in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join([f"{head},width,height", *sized]) + "\n")
    return folder


def a_table_of_images_elsewhere(folder):
    return images_of_a_table(folder) / "labels.csv"


def unlike_tables(folder):
    table(folder / "people.csv", ["a", "label"], [[n, n % 2] for n in range(30)])
    return table(folder / "places.csv", ["b", "label"], [[n, n % 2] for n in range(30)]).parent


def strange_files(folder):
    (folder / "a.xyz").write_bytes(bytes(9))
    return folder


def nowhere(folder):
    (folder / "reviews.csv").write_text("text,label\n")
    return folder / "review.csv"


def one_row(folder):
    return table(folder / "one.csv", ["text", "label"], [["hello", "x"]])


def a_pipe(folder):
    os.mkfifo(folder / "pipe.csv")
    return folder / "pipe.csv"


def decimal_commas(folder):
    rows = [[n % 9, f"{n * 11},75"] for n in range(60)]
    return table(folder / "flats.csv", ["rooms", "rent"], rows, separator=";")


def money(folder):
    return table(folder / "m.csv", ["a", "price"], [[n % 9, f"${n}.50"] for n in range(60)])


def one_object(folder):
    rows = [{"a": n % 7, "label": n % 2} for n in range(40)]
    (folder / "all.json").write_text(json.dumps({"version": 2, "data": rows}))
    return folder / "all.json"


def boxes_of_coco(folder):
    for n in range(12):
        picture(folder / "images" / f"{n}.jpg")
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def boxes_of_yolo(folder):
    for n in range(12):
        picture(folder / "images" / "train" / f"{n}.jpg")
        (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / "train" / f"{n}.txt").write_text("0 0.5 0.5 0.25 0.125\n")
    return folder


def columns_of_one_name(folder):
    return table(folder / "t.csv", ["x", "x", "label"], [[n, n % 7, n % 2] for n in range(30)])


def python_objects(folder):
    (folder / "data.pkl").write_bytes(b"\x80\x04]\x94.")
    return folder / "data.pkl"


def masks_alone(folder):
    for n in range(12):
        picture(folder / "images" / f"{n}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(9, 12, dtype=np.uint8) * 255).save(folder / "masks" / f"{n}.png")
    return folder


def masks_of_parts(folder):
    for part in ("train", "val"):
        masks_alone(folder / part)
    return folder


def masks_by_ending(folder):
    for n in range(12):
        picture(folder / f"img{n}.jpg")
        Image.fromarray(np.eye(9, 12, dtype=np.uint8) * 255).save(folder / f"img{n}_mask.png")
    return folder


def a_read_me_alone(folder):
    (folder / "README.md").write_text("My data will be here")
    return folder


def links_to_classes(folder):
    for label in ("cat", "dog"):
        picture(folder.parent / "elsewhere" / label / "1.jpg")
        (folder / label).symlink_to(folder.parent / "elsewhere" / label)
    return folder


def an_object_as_target(folder):
    rows = [{"user": {"age": n}, "size": n % 7, "label": {"name": "ab"[n % 2]}} for n in range(60)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def files_in_cells(folder):
    import pyarrow
    from pyarrow import parquet as files

    picture(folder / "one.png")
    cell = {"bytes": (folder / "one.png").read_bytes(), "path": None}
    (folder / "one.png").unlink()
    columns = {"image": [cell] * 40, "label": [n % 2 for n in range(40)]}
    files.write_table(pyarrow.table(columns), folder / "train-00000-of-00001.parquet")
    return folder


def blanks_around_numbers(folder):
    return table(folder / "t.csv", ["a", "label"], [[f" {n} ", "xy"[n % 2]] for n in range(60)])


def a_name_that_is_not_utf_8(folder):
    rows = [[n % 7, "xy"[n % 2]] for n in range(60)]
    return table(Path(os.fsdecode(os.fsencode(folder) + b"/donn\xe9es.csv")), ["a", "label"], rows)


def names_without_endings(folder):
    for n in range(20):
        picture(folder / "img" / f"{n}.jpg")
    return table(folder / "l.csv", ["id", "breed"], [[n, "ab"[n % 2]] for n in range(20)]).parent


def a_comment_first(folder):
    (folder / "a.csv").write_text("# sensor 7\na,b,label\n" + "1,2,0\n2,3,1\n" * 20)
    return folder / "a.csv"


def no_header_twice(folder):
    return table(folder / "n.csv", [0, 0, 5, 1], [[n, n * 2, n % 3, n % 2] for n in range(30)])


def parts_in_two_tables(folder):
    for name in ("train", "dev", "valid"):
        table(folder / f"{name}.csv", ["a", "label"], [[n, n % 2] for n in range(30)])
    return folder


def parts_in_two_languages(folder):
    for name in ("en", "fr"):
        (folder / name).mkdir()
        table(folder / name / "train.csv", ["a", "label"], [[n, n % 2] for n in range(30)])
    return folder


def a_saved_data_set_without_state(folder):
    from datasets import Dataset

    Dataset.from_dict({"a": [*range(9)], "label": ["x", "y", "z"] * 3}).save_to_disk(folder)
    (folder / "state.json").unlink()
    return folder


REFUSED = {
    "no header, numbers twice": (no_header_twice, "has no names of columns: its first line holds"),
    "two validation tables": (parts_in_two_tables, "several tables: 'dev.csv', 'valid.csv'"),
    "two training tables": (parts_in_two_languages, "tables: 'en/train.csv', 'fr/train.csv'"),
    "a saved data set without state": (
        a_saved_data_set_without_state,
        "state.json: cannot be read",
    ),
    "decimal commas": (decimal_commas, "has rent to learn, but numbers are read without marks"),
    "money": (money, "unlike its '$0.50'"),
    "one object": (one_object, "is one object, whose 'data' holds 40 samples"),
    "boxes of COCO": (boxes_of_coco, "instances.json: holds annotations as COCO has them"),
    "boxes of YOLO": (boxes_of_yolo, "holds boxes as YOLO writes them, such as 'labels/train/0.t"),
    "columns of one name": (columns_of_one_name, "has several columns called 'x'"),
    "Python objects": (python_objects, "is a file of Python objects, which init does not read"),
    "masks without a table": (masks_alone, "such as 'masks/0.png' of the image 'images/0.jpg', an"),
    "masks of parts": (
        masks_of_parts,
        "masks/0.png' of the image 'val/images/0.jpg', and no table",
    ),
    "masks by ending": (masks_by_ending, "such as 'img0_mask.png' of the image 'img0.jpg', and no"),
    "a README alone": (a_read_me_alone, "holds no data beside 'README.md'"),
    "links to classes": (links_to_classes, "links to folders, which are not followed: 'cat', 'dog"),
    "an object as target": (an_object_as_target, "has label to learn, but its cells are objects"),
    "files in cells": (files_in_cells, "image: its cells hold whole files, which are read from a"),
    "blanks around numbers": (blanks_around_numbers, "a: numbers are read without marks and with"),
    "a name that is not UTF-8": (a_name_that_is_not_utf_8, "is no name in UTF-8, which a config"),
    "names without endings": (names_without_endings, "l.csv, which names none of them"),
    "a comment first": (a_comment_first, "the first line is no header: take it out"),
    "an empty folder": (nothing, "is empty: it holds no files"),
    "a run": (a_run, "is the folder of a run"),
    "a config": (a_config, "is a config already"),
    "one image": (an_image, "is a single image"),
    "images without labels": (unlabelled_images, "5 images in one folder, and nothing tells"),
    "texts without labels": (unlabelled_texts, "5 texts in one folder, and nothing tells"),
    "lines of text": (lines_of_text, "holds lines without columns"),
    "no header": (no_header, "has no names of columns: its first line holds numbers"),
    "an archive": (a_zip, "is a zip archive"),
    "four rows": (four_rows, "holds 4 samples, too few"),
    "one row": (one_row, "holds 1 sample, too few"),
    "a pipe": (a_pipe, "is a device or a pipe"),
    "one class": (one_class, "has a single class: label is 'x' in every row"),
    "ids alone": (only_ids, "has no column to learn 'label' from"),
    "targets missing": (targets_missing, "has no label in 3 of 30 rows"),
    "tables of two kinds": (unlike_tables, "holds several tables: 'people.csv', 'places.csv'"),
    "files of no known kind": (strange_files, "there are files of .xyz"),
    "a table of images elsewhere": (
        a_table_of_images_elsewhere,
        "init on a folder that holds table and images finds them",
    ),
    "an image is missing": (an_image_is_missing, "filename: no such image file: '7.jpg'"),
    "a wrong name": (nowhere, "did you mean 'reviews.csv'?"),
}
"""Maker, and a part of the line that tells why."""
