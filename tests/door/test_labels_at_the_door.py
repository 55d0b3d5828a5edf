"""Labels are taken as people mean them, or what is odd about them is told in one line."""

import json

import pytest
import torch

from finetune.cli.plans import preview, preview_as_data
from finetune.data.targets.labels import LabelRules, notes_on_spelling, ordered
from finetune.errors import DataError
from finetune.models.preprocessing import read_preprocessing

XY = {"inputs": ["x"], "target": "y"}
MULTILABEL = {"type": "multilabel"}
CLASSIFY = {"type": "classification"}
HEAD = {"layers": [{"name": "head", "type": "Linear", "out_features": "classes"}]}


@pytest.fixture
def write_csv(tmp_path):
    def write(values, name="data.csv"):
        rows = "".join(f'{n}.0,"{str(v).replace(chr(34), chr(34) * 2)}"\n' for n, v in values)
        (tmp_path / name).write_text("x,y\n" + rows, encoding="utf-8")
        return {"type": "csv", "path": str(tmp_path / name)}

    def of(values, name="data.csv"):
        return write(list(enumerate(values)), name)

    return of


@pytest.fixture
def opened(small_config):
    """Open data as `plan` and `train` do."""
    from finetune.data.prepare import open_data

    def open_(data, task=CLASSIFY, head=()):
        config = small_config(data=data, task=task)
        return open_data(config.data, config.task, seed=0, trust=(), head=head)

    return open_


@pytest.mark.parametrize(
    "spellings",
    [
        ["Positive", "POSITIVE ", "positive"],
        ["ham", "\u00a0ham", "ham\u200b"],
        ["Stra\u00dfe", "STRASSE", "strasse"],
        ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
        ["very good", "very  good", "Very\u2003Good"],
    ],
    ids=["case and blanks", "invisible characters", "sharp s", "accents", "blanks within"],
)
def test_labels_equal_but_for_case_and_blanks_are_told_and_folded_on_demand(
    write_csv, opened, spellings
):
    source = write_csv([*spellings, "other"])
    data = opened(XY | {"source": source})
    assert len(data.facts.classes) == 4
    assert data.facts.notes[0].startswith("3 of 4 labels are equal to others but for case")
    assert data.facts.notes[0].endswith("data.labels: {fold: true} leaves 2")
    folded = opened(XY | {"source": source, "labels": {"fold": True}})
    assert len(folded.facts.classes) == 2
    assert len(set(folded.train.target[:3].tolist())) == 1
    assert folded.facts.notes[0] == "4 spellings are folded to 2 labels"


def test_labels_of_several_labels_are_folded_too(write_csv, opened):
    data = XY | {"source": write_csv(["Action,drama", "action", "DRAMA"]), "labels": {"fold": True}}
    found = opened(data, MULTILABEL)
    assert found.facts.classes == ("action", "drama")
    assert found.train.target.tolist() == [[1, 1], [1, 0], [0, 1]]


def test_labels_that_differ_are_not_told_as_alike(write_csv, opened):
    assert opened(XY | {"source": write_csv(["a", "b", "a b"])}).facts.notes == ()


def test_a_blank_is_no_label(write_csv, opened):
    with pytest.raises(DataError, match="'y' has no label in row 2"):
        opened(XY | {"source": write_csv(["a", " ", "b"])})


def test_a_label_that_training_spells_otherwise_names_the_key(write_csv, opened):
    data = {"train": write_csv(["a", "b"]), "validation": write_csv(["a", "B "], "more.csv")}
    with pytest.raises(DataError, match="'B ' of the validation part is never seen") as told:
        opened(XY | data)
    assert told.value.hint == "training has 'b'; data.labels: {fold: true} makes them one label"


@pytest.mark.parametrize(
    "cells",
    [
        ["['a', 'b']", "['b']", "[]"],
        ['["a", "b"]', '["b"]', ""],
        ["['a' 'b']", "['b']", "[]"],
        ["{'b', 'a'}", "{'b'}", "set()"],
        ["('a', 'b')", "('b',)", "()"],
        ["array(['a', 'b'], dtype=object)", "array(['b'], dtype='<U1')", "array([])"],
        ["[np.str_('a'), np.str_('b')]", "[np.str_('b')]", "[]"],
        ["frozenset({'a', 'b'})", "frozenset({'b'})", "frozenset()"],
        ["['a'\n 'b']", "['b']", "[]"],
    ],
    ids=["Python", "JSON", "numpy", "sets", "tuples", "arrays", "numpy 2", "frozen", "lines"],
)
def test_lists_written_as_text_are_lists(write_csv, opened, cells):
    data = opened(XY | {"source": write_csv(cells)}, MULTILABEL)
    assert data.facts.classes == ("a", "b")
    assert data.train.target.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert data.facts.notes[0].startswith("cells of 'y' are read as lists, such as ")


@pytest.fixture
def write_json(tmp_path):
    def write(cells, name="data.jsonl"):
        rows = (json.dumps({"x": n + 0.5, "y": cell}) for n, cell in enumerate(cells))
        (tmp_path / name).write_text("\n".join(rows))
        return {"type": "json", "path": str(tmp_path / name)}

    return write


def test_lists_of_one_0_or_1_are_one_label_which_is_told(write_json, opened):
    found = opened(XY | {"source": write_json([[0], [1], [1]])}, MULTILABEL)
    assert found.facts.classes == ("0",)
    assert found.train.target.tolist() == [[0], [1], [1]]
    [note] = found.facts.notes
    assert note.startswith("column 'y' holds one 0 or 1 a sample, read as one label")


def test_label_numbers_of_a_part_may_all_be_of_one_length(write_json, opened):
    train = write_json([[0, 3], [1], [2, 0]])
    for cells, rows in (([[0], [1]], [[1, 0, 0, 0], [0, 1, 0, 0]]), ([[3, 1]], [[0, 1, 0, 1]])):
        parts = {"train": train, "validation": write_json(cells, "more.jsonl")}
        found = opened(XY | parts, MULTILABEL)
        assert found.facts.classes == ("0", "1", "2", "3")
        assert found.validation.target.tolist() == rows
    with pytest.raises(DataError, match="must hold a row of 0 and 1"):
        opened(XY | {"source": write_json([[0, 3], [1, 2]])}, MULTILABEL)


def test_a_matrix_of_fewer_labels_than_training_has_is_refused(write_json, opened):
    parts = {
        "train": write_json([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]),
        "validation": write_json([[0, 1, 0, 1]], "more.jsonl"),
    }
    with pytest.raises(DataError, match="has 4 labels, not 5"):
        opened(XY | parts, MULTILABEL)


def test_escapes_and_commas_within_quotes_belong_to_the_label(write_csv, opened):
    cells = ["['a, b', 'it\\'s']", '["caf\\u00e9"]']
    assert opened(XY | {"source": write_csv(cells)}, MULTILABEL).facts.classes == (
        "a, b",
        "caf\u00e9",
        "it's",
    )


def test_rows_of_0_and_1_written_as_text_are_rows(write_csv, opened):
    data = opened(XY | {"source": write_csv(["[0, 1]", "[1, 0]"])}, MULTILABEL)
    assert data.train.target.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    "cells",
    [
        ["[action, drama]", "[drama]"],
        ["['a']", "b"],
        ["['a' 'b' ... 'z']", "['a']"],
        ["[__import__('os').system('true')]", "['a']"],
        ["{'a': 1}", "{'b': 1}"],
        ["['a', None]", "['b']"],
        ["['a'] + ['b']", "['b']"],
        ["['a''b']", "['b']"],
    ],
    ids=["bare", "mixed", "shortened", "code", "mapping", "nothing", "sum", "touching"],
)
def test_what_is_no_plain_list_is_refused_with_the_separator(write_csv, opened, cells):
    with pytest.raises(DataError, match="is no plain list of labels") as told:
        opened(XY | {"source": write_csv(cells)}, MULTILABEL)
    assert 'task: {separator: ","}' in told.value.hint
    plain = opened(XY | {"source": write_csv(cells)}, MULTILABEL | {"separator": ","})
    assert plain.facts.classes


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["action|drama", "comedy"], "|"),
        (["action; drama", "comedy"], ";"),
        (["action drama", "drama action", "action", "drama"], " "),
        (["action/drama", "drama/action", "action", "drama"], "/"),
    ],
)
def test_another_separator_is_named(write_csv, opened, cells, separator):
    source = write_csv(cells)
    with pytest.raises(DataError, match="no cell holds the separator ','") as told:
        opened(XY | {"source": source}, MULTILABEL)
    assert f'task: {{separator: "{separator}"}}' in told.value.hint
    data = opened(XY | {"source": source}, MULTILABEL | {"separator": separator})
    assert {"action", "drama"} <= set(data.facts.classes)


def test_a_label_of_two_words_is_one_label(write_csv, opened):
    data = opened(XY | {"source": write_csv(["science fiction", "drama"])}, MULTILABEL)
    assert data.facts.classes == ("drama", "science fiction")


def columns(tmp_path, rows, names="x,toxic,insult"):
    (tmp_path / "columns.csv").write_text("\n".join([names, *rows]) + "\n")
    source = {"type": "csv", "path": str(tmp_path / "columns.csv")}
    return {"source": source, "inputs": ["x"], "target": names.split(",")[1:]}


@pytest.mark.parametrize(
    "rows", [["1,0,1", "2,1,1"], ["1,False,True", "2,True,True"]], ids=["numbers", "words"]
)
def test_a_column_for_each_label_is_a_target(tmp_path, opened, rows):
    data = opened(columns(tmp_path, rows), MULTILABEL)
    assert data.facts.classes == ("toxic", "insult")
    assert data.train.target.tolist() == [[0, 1], [1, 1]]


def test_a_run_on_columns_of_labels_predicts_by_their_names(tmp_path, small_run):
    from finetune.predict import load_predictor

    data = columns(tmp_path, [f"{n},{n % 2},{1 - n % 2}" for n in range(12)])
    data["transforms"] = [{"type": "stack"}]
    small_run(model=HEAD, data=data, task=MULTILABEL).fit()
    (said,) = load_predictor(tmp_path / "run")([{"x": 3.0}])
    assert list(said.probabilities) == ["toxic", "insult"]


def test_several_numbers_are_learnt_from_several_columns(tmp_path, opened):
    data = opened(columns(tmp_path, ["1,0.5,1", "2,3,4"]), {"type": "regression"})
    assert data.train.target.tolist() == [[0.5, 1], [3, 4]]


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (["1,0,2"], {}, "must hold a row of 0 and 1"),
        (["1,0,no"], {}, "'insult' holds 'no' in row 1 of .* where a number is needed"),
        (["1,0,1", "1,0,"], {}, "'insult' holds nan in row 2"),
        (["1,0,1"], {"target": ["toxic", "insul"]}, "no column 'insul'"),
        (["1,0,1"], {"target": ["x", "insult"]}, "'x' is both input and target"),
    ],
    ids=["two", "word", "gap", "unknown", "input"],
)
def test_a_wrong_column_of_labels_is_named(tmp_path, opened, rows, change, message):
    with pytest.raises(DataError, match=message):
        opened(columns(tmp_path, rows) | change, MULTILABEL)


@pytest.mark.parametrize(
    ("found", "head", "classes"),
    [
        (["negative", "positive"], ["positive", "negative"], ("positive", "negative")),
        (["negative", "positive"], ["POSITIVE", "Negative"], ("positive", "negative")),
        (["b", "c"], ["c", "a", "b"], ("c", "a", "b")),
        (["a", "b", "c"], ["z", "y"], ("a", "b", "c")),
        (["0", "1"], ["no", "yes"], ("0", "1")),
        (["a", "A"], ["A", "a"], ("A", "a")),
    ],
    ids=["other order", "other case", "fewer", "new head", "places", "case decides"],
)
def test_classes_take_the_order_of_a_pretrained_head(found, head, classes):
    assert ordered(found, LabelRules(head=tuple(head))).classes == classes
    unasked = LabelRules(head=tuple(head), order="sorted")
    assert ordered(found, unasked).classes == tuple(found)


@pytest.mark.parametrize("found", [["good", "neg"], ["1", "2"]], ids=["names", "numbers"])
def test_labels_that_the_head_calls_otherwise_are_refused_with_both_lists(found):
    with pytest.raises(DataError) as told:
        ordered(found, LabelRules(head=("pos", "neg")))
    assert f"'{found[0]}', '{found[1]}'" in told.value.message
    assert "'pos', 'neg'" in told.value.message
    assert "data.labels: {order: sorted}" in told.value.hint


def test_the_order_of_the_head_is_told_and_numbers_the_targets(write_csv, opened):
    data = opened(XY | {"source": write_csv(["neg", "pos", "neg"])}, head=("Pos", "Neg"))
    assert data.facts.classes == ("pos", "neg")
    assert data.train.target.tolist() == [1, 0, 1]
    assert data.facts.notes[0].startswith("classes are in the order of the pretrained head: 'pos'")


@pytest.mark.parametrize(
    ("id2label", "names"),
    [
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        ({"0": "a", "2": "b"}, ()),
        ({"0": "a", "1": "a"}, ()),
        (["a", "b"], ()),
        (None, ()),
    ],
    ids=["names", "none given", "a gap", "twice", "a list", "nothing"],
)
def test_the_names_of_a_head_are_read_from_its_folder(tmp_path, small_config, id2label, names):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": id2label}))
    layer = {"name": "net", "type": "transformers", "path": str(tmp_path), "output": "logits"}
    config = small_config(model={"layers": [layer]})
    assert read_preprocessing(config.model).head == names
    behind = small_config(model={"layers": [layer, *HEAD["layers"]]})
    assert read_preprocessing(behind.model).head == ()


def test_classes_that_a_part_lacks_are_told_in_both_directions(write_csv, opened):
    data = {"train": write_csv(["a", "b", "c"]), "test": write_csv(["a"], "test.csv")}
    notes = opened(XY | data).facts.notes
    assert "the test part has no sample of 2 of 3 classes: 'b', 'c'" in notes
    with pytest.raises(DataError, match="'d' of the test part is never seen in training"):
        opened(XY | data | {"test": write_csv(["d"], "test.csv")})


def test_a_class_that_only_the_head_knows_may_not_come_up_later(write_csv, opened):
    data = {"train": write_csv(["a", "b"]), "test": write_csv(["c"], "test.csv")}
    with pytest.raises(DataError, match="'c' of the test part is never seen in training"):
        opened(XY | data, head=("c", "b", "a"))


SPELT = [
    ([{"type": "Accuracy", "average": "micro"}], True),
    ([{"type": "BinaryAccuracy"}], True),
    ([{"type": "F1Score", "average": "micro"}], True),
    ([{"type": "HammingDistance", "average": "weighted"}], True),
    (["accuracy", {"type": "Accuracy", "average": "micro", "name": "again"}], True),
    ([{"type": "Accuracy"}], False),  # the mean over classes
    (["accuracy", {"type": "BinaryF1Score"}], False),
    (["accuracy", {"type": "MatthewsCorrCoef"}], False),
]
"""Metrics of classes, and whether a constant answer looks good in all of them."""


@pytest.mark.parametrize(
    ("task", "labels", "told"),
    [
        (CLASSIFY, ["a"] * 9 + ["b"], True),
        (CLASSIFY, ["a"] * 7 + ["b"] * 3, False),
        (CLASSIFY | {"metrics": ["accuracy", "f1"]}, ["a"] * 9 + ["b"], False),
        (MULTILABEL | {"metrics": ["accuracy"]}, ["a"] + [""] * 9, True),
        (MULTILABEL, ["a"] + [""] * 9, False),
        *((CLASSIFY | {"metrics": metrics}, ["a"] * 9 + ["b"], told) for metrics, told in SPELT),
        (MULTILABEL | {"metrics": [{"type": "Accuracy"}]}, ["a"] + [""] * 9, True),
        (MULTILABEL | {"metrics": [{"type": "F1Score", "average": "micro"}]},
         ["a"] + [""] * 9, False),
    ],
)  # fmt: skip
def test_accuracy_that_guessing_reaches_is_told(write_csv, opened, task, labels, told):
    notes = opened(XY | {"source": write_csv(labels)}, task).facts.notes
    assert any("an accuracy of 0.900" in note for note in notes) == told


def test_plan_and_train_tell_the_same_notes(write_csv, small_config, small_run, heard):
    data = XY | {"source": write_csv(["a", "A", "b"] * 4), "transforms": [{"type": "stack"}]}
    sections = {"model": HEAD, "data": data, "task": CLASSIFY}
    notes = preview_as_data(preview(small_config(**sections)))["notes"]
    from finetune.train.wire import build_trainer

    build_trainer(small_config(**sections), small_run(**sections).folder.path, tracker=heard)
    assert notes[0].startswith("2 of 3 labels are equal")
    assert [line for line in heard.said if line.startswith("data: ")] == [
        f"data: {n}" for n in notes
    ]


def test_targets_that_were_read_right_before_are_as_they_were(write_csv, opened):
    data = opened(XY | {"source": write_csv(["b,a", "a", "c"])}, MULTILABEL)
    assert data.facts.classes == ("a", "b", "c")
    expected = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.equal(data.train.target, expected)
    assert data.facts.notes == ()


def test_labels_that_read_like_a_missing_value_are_told_with_the_key_that_refuses_them(
    write_csv, opened
):
    source = write_csv(["a", "b", "NA", "None", "a"])
    data = opened(XY | {"source": source})
    assert data.facts.classes == ("NA", "None", "a", "b")
    (note,) = [note for note in data.facts.notes if "missing value" in note]
    assert note.startswith("2 of 4 labels are classes and read like a missing value: 'NA', 'None'")
    assert 'missing: ["NA", "None"]' in note
    with pytest.raises(DataError, match="has no label in row 3"):
        opened(XY | {"source": source | {"missing": ["NA", "None"]}})


@pytest.mark.parametrize(
    "labels",
    [["1", "01", "1.0"], ["a-b", "a_b"], ["cat", "c\u0430t"], ["'yes'", "yes"], ["a", "a."]],
    ids=["numbers", "dashes", "another alphabet", "quotes", "point"],
)
def test_labels_that_look_alike_are_told(labels):
    (note,) = notes_on_spelling([*labels, "other"], LabelRules())
    count = len(labels)
    assert note.startswith(f"{count} of {count + 1} labels look alike to a person, such as ")


@pytest.mark.parametrize(
    "labels",
    [["A", "A-", "A+"], ["a.1.11", "a.11.1"], ["v1.1", "v11"], ["5", "-5"], [",", ".", "``"]],
    ids=["grades", "classes of classes", "versions", "minus", "tags of signs"],
)
def test_labels_that_differ_by_a_sign_with_a_meaning_are_told_nothing_about(labels):
    assert notes_on_spelling([*labels, "other"], LabelRules()) == []


def test_labels_that_differ_to_a_person_are_told_nothing_about():
    different = [
        "cat",
        "cats",
        "2020-01-01",
        "2020-01-02",
        "-1",
        "1",
        "0.5",
        "5",
        "+",
        "-",
        "C",
        "C#",
    ]
    assert notes_on_spelling(different, LabelRules()) == []
