"""Every source gives its columns; what is wrong with one is told in one line."""

import sys

import datasets
import numpy as np
import pytest
import torch

from finetune.errors import DataError, FinetuneError, TrustError

TEXTS, LABELS = ["one", "two", "three", "four"], ["b", "a", "b", "a"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


@pytest.fixture
def source(request, tmp_path, write_csv, write_jsonl, write_images, write_module):
    """One source of each kind, holding four samples of two classes."""
    hub = datasets.Dataset.from_list(ROWS)

    def text_folder():
        for row in ROWS:
            (tmp_path / "t" / row["label"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "t" / row["label"] / row["text"]).write_text(row["text"])
        return {"type": "textfolder", "path": str(tmp_path / "t")}

    def module():
        write_module("four", f"def make():\n    return {{'text': {TEXTS}, 'label': {LABELS}}}")
        return {"type": "import", "path": "four:make"}

    def saved(write, name, **more):
        write(tmp_path / name)
        kind = "parquet" if name.endswith("parquet") else "huggingface"
        return {"type": kind, "path": str(tmp_path / name)} | more

    makers = {
        "csv": lambda: write_csv([["text", "label"], *[list(row.values()) for row in ROWS]]),
        "jsonl": lambda: write_jsonl(ROWS),
        "parquet": lambda: saved(hub.to_parquet, "a.parquet"),
        "huggingface": lambda: saved(hub.save_to_disk, "hub"),
        "huggingface parts": lambda: saved(
            datasets.DatasetDict({"all": hub}).save_to_disk, "hub", part="all"
        ),
        "textfolder": text_folder,
        "imagefolder": lambda: write_images({"a": [(4, 4)] * 2, "b": [(4, 4)] * 2}),
        "import": module,
    }
    return makers[request.param]()


KINDS = [
    *("csv", "jsonl", "parquet", "huggingface", "huggingface parts"),
    *("textfolder", "imagefolder", "import"),
]


@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_a_source_gives_its_usual_columns_and_sorted_classes(source, opened, capfd):
    capfd.readouterr()
    data = opened({"source": source}, trust=["four"])
    assert data.facts.inputs == ("image" if source["type"] == "imagefolder" else "text",)
    assert data.facts.target == "label"
    assert data.facts.classes == ("a", "b")
    assert data.facts.sizes == {"train": 4}
    assert sorted(data.train.target.tolist()) == [0, 0, 1, 1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "task", "shape", "target", "num_classes"),
    [
        ("digits", "classification", (1797, 1, 8, 8), (1797,), 10),
        ("iris", "classification", (150, 4), (150,), 3),
        ("wine", "classification", (178, 13), (178,), 3),
        ("breast_cancer", "classification", (569, 30), (569,), 2),
        ("diabetes", "regression", (442, 10), (442,), None),
        ("linnerud", "regression", (20, 3), (20, 3), None),
    ],
)
def test_bundled_sets_have_their_shapes(prepared, name, task, shape, target, num_classes):
    data = prepared({"source": {"type": "sklearn", "name": name}}, task)
    batch = data.train.fetch(range(len(data.train)))
    (values,) = batch.inputs.values()
    assert values.shape == shape
    assert values.dtype == torch.float32
    assert batch.target.shape == target
    assert (data.facts.classes and len(data.facts.classes)) == num_classes


def test_digits_are_scaled_to_one(prepared):
    images = prepared({"source": {"type": "sklearn", "name": "digits"}}).train.fetch([0, 1, 2])
    assert images.inputs["image"].max() == 1


def test_random_numbers_depend_on_their_seed_alone(prepared):
    def draw(seed):
        source = {"type": "random", "samples": 3, "features": 5, "targets": [2], "seed": seed}
        return prepared({"source": source}, "regression").train.fetch([0, 1, 2])

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert torch.equal(first.inputs["features"], draw(0).inputs["features"])
    assert not torch.equal(first.inputs["features"], draw(1).inputs["features"])
    assert first.inputs["features"].shape == (3, 5)
    assert first.target.shape == (3, 2)


def test_mnist_is_cut_out_of_a_headless_csv_as_images(prepared, mnist):
    data = prepared({"source": mnist})
    batch = data.train.fetch([0, 4999])
    assert batch.inputs["image"].shape == (2, 1, 28, 28)
    assert 0.9 < batch.inputs["image"].max() <= 1
    assert data.facts.classes == tuple("0123456789")
    assert batch.target.tolist() == [0, 9]


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_arrays_are_read_by_name_or_cut(tmp_path, prepared, ending):
    values = np.arange(12.0).reshape(4, 3)
    source = {"type": "arrays", "path": str(tmp_path / f"a.{ending}")}
    if ending == "npz":
        np.savez(source["path"], features=values[:, :2], target=values[:, 2])
    else:
        np.save(source["path"], values)
        source["columns"] = {"features": {"take": ":2"}, "target": {"take": "2"}}
    batch = prepared({"source": source}, "regression").train.fetch([3, 1])
    assert torch.equal(batch.inputs["features"], torch.tensor([[9.0, 10.0], [3.0, 4.0]]))
    assert torch.equal(batch.target, torch.tensor([11.0, 5.0]))


def test_hub_images_and_class_names_survive(tmp_path, prepared):
    pixels = [np.full((2, 2), value, dtype=np.uint8) for value in (0, 51)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["zero", "five"])}
    )
    rows = {"image": pixels, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "hub")
    data = prepared({"source": {"type": "huggingface", "path": str(tmp_path / "hub")}})
    assert data.facts.classes == ("five", "zero")
    batch = data.train.fetch([1])
    assert torch.equal(batch.inputs["image"], torch.full((1, 1, 2, 2), 0.2))
    assert batch.target.tolist() == [0]


def test_tags_of_the_hub_bear_their_names(tmp_path, prepared, minilm):
    tags = datasets.ClassLabel(names=["O", "B-place"])
    features = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "tags": datasets.List(tags)}
    )
    rows = {"words": [["to", "Rome"], ["Oslo"]], "tags": [[0, 1], [1]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "hub")
    data = prepared(
        {
            "source": {"type": "huggingface", "path": str(tmp_path / "hub")},
            "inputs": ["words"],
            "target": "tags",
            "transforms": [{"type": "tokenize", "tokenizer": minilm}],
        },
        "token_classification",
    )
    assert data.facts.classes == ("B-place", "O")


@pytest.mark.parametrize("item", ["(x, i)", "{'x': x, 'y': i}"])
def test_a_torch_dataset_gives_columns_x_and_y(write_module, prepared, item):
    text = f"""
import torch
class Squares(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, i):
        x = torch.tensor([i, i * i], dtype=torch.float32)
        return {item}
"""
    write_module("squares", text)
    source = {"type": "import", "path": "squares:Squares"}
    batch = prepared({"source": source}, trust=["squares"]).train.fetch([2])
    assert torch.equal(batch.inputs["x"], torch.tensor([[2.0, 4.0]]))
    assert batch.target.tolist() == [2]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "return {'x': torch.zeros(4, 3, device='meta')}",
            "column 'x' is a tensor whose numbers do not lie in memory",
        ),
        ("return {'x': np.ma.array([1.0] * 4, mask=[0, 0, 1, 0])}", "'x' has masked numbers"),
        (
            "return {'x': [np.zeros(2), np.ma.array([1.0, 2.0], mask=[0, 1])]}",
            "column 'x' has no data in sample 1",
        ),
        ("return {'x': [1.0, np.ma.masked]}", "column 'x' has no data in sample 1"),
        ("return {'x': torch.zeros(())}", "column 'x' is Tensor, not samples"),
        (
            "return {'x': [torch.ones(3)] * 3 + [10**30], 'y': [0, 1] * 2}",
            "0 fits no number of 64 bits",
        ),
        ("return Rows(4, 2)", "sample 2 of '{name}:make' cannot be read: ValueError: two"),
        ("return Rows(-1, 2)", "'{name}:make' cannot be read: ValueError: __len__"),
        (
            "return datasets.Dataset.from_dict({'x': [1.0] * 4}).to_iterable_dataset()",
            "'{name}:make' returned IterableDataset; expected a mapping of columns",
        ),
    ],
    ids=[
        "no data",
        "mask",
        "mask in a cell",
        "masked",
        "no axis",
        "large",
        "a sample",
        "a length",
        "iterable",
    ],
)
def test_what_an_imported_source_cannot_give_is_one_line(
    write_module, prepared, request, body, told
):
    name = f"odd_{request.node.callspec.id.replace(' ', '_').replace('-', '_')}"
    text = f"""
import datasets, numpy as np, torch
class Rows:
    def __init__(self, length, bad): self.length, self.bad = length, bad
    def __len__(self): return self.length
    def __getitem__(self, i):
        if i == self.bad: raise ValueError("two\\nlines")
        return {{"x": float(i), "y": i}}
def make():
    {body}
"""
    write_module(name, text)
    source = {"type": "import", "path": f"{name}:make"}
    with pytest.raises(DataError, match=told.format(name=name)) as caught:
        prepared({"source": source, "inputs": ["x"], "target": "y"}, trust=[name])
    assert "\n" not in caught.value.message


def test_a_lack_of_memory_is_no_fault_of_an_imported_source(write_module, opened):
    text = "class Rows(list):\n    def __getitem__(self, i): raise MemoryError\n"
    write_module("large_rows", f"{text}def make(): return Rows([1, 2])\n")
    with pytest.raises(MemoryError):
        opened({"source": {"type": "import", "path": "large_rows:make"}}, trust=["large_rows"])


def test_an_import_that_is_not_trusted_is_refused_before_it_is_imported(write_module, opened):
    write_module("stranger", "raise RuntimeError('imported')")
    with pytest.raises(TrustError, match="not trusted"):
        opened({"source": {"type": "import", "path": "stranger:make"}})
    assert "stranger" not in sys.modules


def test_csv_cells_are_taken_as_they_stand(tmp_path, opened):
    """`NA`, `null`, quotes, line breaks, a byte order mark and very long texts are all data."""
    long = "x" * 200_000
    path = tmp_path / "data.csv"
    content = f'text,label\r\nNA,null\r\n"a, ""b""\nc",None\r\n,x\r\n{long},x\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    data = opened({"source": {"type": "csv", "path": str(path)}})
    assert list(data.train.table.columns["text"].values) == ["NA", 'a, "b"\nc', "", long]
    assert data.facts.classes == ("None", "null", "x")


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "9", "10"], ("9", "10")),
        (["1.0", "2", "1"], ("1", "2")),
        (["007", "7", "007"], ("007", "7")),
        (["12345678901234567890", "12345678901234567891"], None),
        (["-1", "+1", "0"], ("-1", "0", "1")),
        (["1", "b", "1"], ("1", "b")),
    ],
    ids=str,
)
def test_csv_labels_are_numbers_only_where_every_one_reads_as_one(
    write_csv, opened, cells, classes
):
    rows = [["text", "label"], *[["t", cell] for cell in cells]]
    assert opened({"source": write_csv(rows)}).facts.classes == (classes or tuple(cells))


def test_csv_features_with_another_separator(tmp_path, prepared):
    (tmp_path / "a.csv").write_text("a;b;y\n1;2,5;x\n1;2,5;x\n")
    source = {"type": "csv", "path": str(tmp_path / "a.csv"), "separator": ";"}
    with pytest.raises(DataError, match=r"'b' holds '2,5' in row 1 .* where a number is needed"):
        prepared({"source": source, "inputs": ["a", "b"]})


def test_image_paths_in_a_csv_are_relative_to_it(tmp_path, write_images, write_csv, prepared):
    write_images({"a": [(4, 4)]})
    source = write_csv([["image", "label"], ["images/a/0.png", "a"]])
    assert prepared({"source": source}).specs["image"].shape == (3, 4, 4)


WRONG = [
    ("no such file", {"type": "csv", "path": "missing.csv"}, "no such file 'missing.csv'"),
    ("no such folder", {"type": "textfolder", "path": "nowhere"}, "no such folder 'nowhere'"),
    ("a folder for a file", {"type": "csv", "path": "{tmp}"}, "needs a file"),
    ("no such package", {"type": "csv", "path": "package:nope/a.csv"}, "no installed package"),
    ("no subfolders", {"type": "textfolder", "path": "{tmp}"}, "has no subfolders"),
    ("header only", "text,label\n", "no samples"),
    ("empty file", "", "no samples"),
    ("short row", "text,label\na,b\nc\n", r"csv:3: holds 1 values where .* names 2 columns"),
    ("open quote", 'text,label\n"a,b\n', "csv:2: unexpected end of data"),
    ("column twice", "text,text\na,b\n", "two columns are named 'text'"),
    ("not utf-8", b"text,label\n\xe9,b\n", "is not valid utf-8"),
    ("other columns", "txt,label\na,b\n", "which columns are the inputs; there are: txt, label"),
    ("no label", "text,lable\na,b\n", "which columns are the target"),
    ("empty label", "text,label\na,b\nc,\n", "'label' has no label in row 2"),
    ("gap in labels", "text,label\na,1\nc,\n", "'label' has no number in row 2"),
]


@pytest.mark.parametrize(("source", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_source_is_told_in_one_line(tmp_path, opened, source, message):
    if isinstance(source, str | bytes):
        path = tmp_path / "data.csv"
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        source = {"type": "csv", "path": str(path)}
    source = source | {"path": source["path"].replace("{tmp}", str(tmp_path))}
    with pytest.raises(FinetuneError, match=message) as caught:
        opened({"source": source})
    assert "\n" not in caught.value.message


def test_a_misspelt_column_is_told_with_the_nearest(write_csv, opened):
    source = write_csv([["text", "label"], ["a", "b"]])
    with pytest.raises(DataError, match="no column 'lable'; there are: text, label") as caught:
        opened({"source": source, "target": "lable"})
    assert caught.value.hint == "did you mean 'label'?"
    assert caught.value.key == ("data", "target")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 1}, {"label": 2}], "'text' has no value in row 2"),
        ([{"text": "a", "label": None}], "'label' has no value in row 1"),
        ([{"text": "a", "label": 1}, {"text": 5, "label": 1}], "'text' mixes text and numbers"),
        ([[1, 2]], "jsonl:1: needs a JSON object, got list"),
        ([{"x": float("nan"), "label": 1}], "'x' holds nan in row 1"),
        ([{"x": 1e300, "label": 1}], "'x' holds inf in row 1"),
        ([{"x": 1.5, "label": 1.5}], "'label' holds 1.5 in row 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_row_is_named(write_jsonl, opened, rows, message):
    with pytest.raises(DataError, match=message):
        opened({"source": write_jsonl(rows)})


def test_columns_that_nobody_uses_may_be_anything(write_jsonl, opened):
    rows = [{"text": "a", "label": 1, "extra": None}, {"text": "b", "label": 2, "more": [1, "x"]}]
    assert opened({"source": write_jsonl(rows)}).facts.sizes == {"train": 2}


def test_a_text_that_is_not_in_the_encoding_is_named_with_the_remedy(opened, bbc):
    with pytest.raises(DataError, match=r"sports/199\.txt' is not valid utf-8") as caught:
        opened({"source": bbc | {"encoding": "utf-8"}})
    assert "errors: replace" in caught.value.hint
    assert "latin-1" in caught.value.hint


def test_bytes_that_are_not_in_the_encoding_can_be_replaced(opened, bbc):
    data = opened({"source": bbc | {"encoding": "utf-8", "errors": "replace"}})
    assert data.facts.sizes == {"train": 2225}


@pytest.mark.parametrize("content", [b"not an image", b"", b"whole"], ids=["text", "empty", "cut"])
def test_an_unreadable_image_is_named(tmp_path, write_images, prepared, content):
    source = write_images({"a": [(40, 40)], "b": [(40, 40)]})
    path = tmp_path / "images" / "b" / "0.png"
    path.write_bytes(path.read_bytes()[:300] if content == b"whole" else content)
    with pytest.raises(DataError, match=r"cannot read the image '.*b/0\.png'"):
        prepared({"source": source})


def test_python_objects_in_arrays_are_never_loaded(tmp_path, opened):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        opened({"source": {"type": "arrays", "path": str(tmp_path / "a.npy")}})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"array": "featurs"}, "no array 'featurs'"),
        ({"array": "features", "shape": [7]}, "cannot give samples of shape"),
        ({"array": "features", "take": "5"}, "no position 5 among 2"),
        ({"array": "features", "dtype": "uint8"}, "do not fit uint8"),
        ({}, "holds several arrays"),
    ],
    ids=str,
)
def test_an_array_that_cannot_be_cut_so_is_told(tmp_path, opened, column, message):
    np.savez(tmp_path / "a.npz", features=np.full((2, 2), 0.5), label=np.arange(2))
    source = {"type": "arrays", "path": str(tmp_path / "a.npz")}
    source["columns"] = {"features": column, "label": {"array": "label"}}
    with pytest.raises(DataError, match=message):
        opened({"source": source})


@pytest.mark.parametrize("path", ["nobody/nothing-here", "{tmp}"], ids=["hub id", "empty folder"])
def test_a_hub_set_that_cannot_be_loaded_is_told_in_one_line(tmp_path, opened, path):
    source = {"type": "huggingface", "path": path.replace("{tmp}", str(tmp_path))}
    with pytest.raises(DataError, match="cannot load") as caught:
        opened({"source": source})
    assert "\n" not in caught.value.message
    assert (caught.value.hint is None) == (path == "{tmp}")


def test_a_folder_that_datasets_knows_is_loaded_in_silence(
    tmp_path, monkeypatch, write_csv, opened, capfd
):
    (tmp_path / "set").mkdir()
    write_csv([["text", "label"], ["some", "a"]], "set/train.csv")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = opened({"source": {"type": "huggingface", "path": str(tmp_path / "set")}})
    assert data.facts.sizes == {"train": 1}
    assert capfd.readouterr() == ("", "")


def test_a_part_that_a_saved_set_lacks_is_told(tmp_path, opened):
    datasets.DatasetDict({"all": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "hub")
    with pytest.raises(DataError, match="no part 'train'; there are: all"):
        opened({"source": {"type": "huggingface", "path": str(tmp_path / "hub")}})


def test_a_file_that_is_no_parquet_is_told(tmp_path, opened):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(DataError, match=r"cannot read '.*a\.parquet'"):
        opened({"source": {"type": "parquet", "path": str(tmp_path / "a.parquet")}})
