"""Steps fitted on the training samples: what each keeps, and what it does to other samples."""

import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.preprocessing import StandardScaler

from finetune.config.data import DataConfig
from finetune.data.incoming.prepare_inputs import prepare_inputs
from finetune.data.steps import fitted_steps
from finetune.data.steps.learnt import MOST_CATEGORIES, Known, Scale, num_positions, read_learnt
from finetune.errors import DataError, FinetuneError
from finetune.models.preprocessing import Preprocessing

NOTHING = Preprocessing(None, None)


@pytest.fixture
def fed(write_csv, prepared):
    """Prepare rows whose column `part` names their part; return the parts, notes and config."""

    def feed(rows, transforms, inputs, *, evaluation=None, source=None):
        header, *body = rows
        data = {
            "source": {**write_csv([header, *body]), **(source or {})},
            "inputs": inputs,
            "target": "y",
            "split": {"by": "part"},
            "transforms": transforms,
            **({} if evaluation is None else {"evaluation_transforms": evaluation}),
        }
        made = prepared(data)
        return made, DataConfig.model_validate(data)

    return feed


def table(cells, *, held=()):
    """Return rows with a column `x`: `cells` for training, `held` for validation."""
    rows = [["x", "y", "part"]]
    rows += [[cell, "ab"[n % 2], "train"] for n, cell in enumerate(cells)]
    return rows + [[cell, "ab"[n % 2], "validation"] for n, cell in enumerate(held)]


def column(samples, name="x"):
    return samples.fetch(range(len(samples))).inputs[name]


def predicted(made, config, **rows):
    told = []
    samples = prepare_inputs(rows, config, made.facts,
                             NOTHING, trust=(), tell=told.append)  # fmt: skip
    return samples, told


def test_standardize_is_that_of_scikit_learn_and_knows_nothing_of_validation(fed):
    cells = [1.5, 2, 7, 11, 0.25, -3]
    made, config = fed(
        table(cells, held=[1e6, 5]), [{"type": "standardize", "columns": ["x"]}], ["x"]
    )
    scaler = StandardScaler().fit(np.array(cells)[:, None])
    expected = [torch.from_numpy(scaler.transform(np.array(some)[:, None]).astype(np.float32)[:, 0])
                for some in (cells, [1e6, 5])]  # fmt: skip
    assert torch.equal(column(made.train), expected[0])
    assert torch.equal(column(made.validation), expected[1])
    one, _ = predicted(made, config, x=["1.5"])
    assert torch.equal(column(one), expected[0][:1])
    assert any("standardize, fitted on 6 training samples: x (mean 3.125" in n for n in made.notes)


def test_each_number_of_a_vector_is_standardized_alone(prepared):
    data = {
        "source": {"type": "sklearn", "name": "wine"},
        "transforms": [{"type": "standardize", "columns": ["features"]}],
    }
    values = column(prepared(data).train, "features")
    assert values.shape == (178, 13)
    torch.testing.assert_close(values.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(13))


@pytest.mark.parametrize(("value", "other"), [(0.1, 0.3), (123456789012345677, 0)])
def test_a_constant_column_becomes_zero_and_is_told(fed, value, other):
    rows = table([value] * 7, held=[other])
    made, _ = fed(rows, [{"type": "standardize", "columns": ["x"]}], ["x"])
    assert not column(made.train).any()
    assert column(made.validation).tolist() == pytest.approx([other - value])
    assert any("constant in the training part and tell nothing: 'x'" in n for n in made.notes)


@pytest.mark.parametrize(
    ("with_", "value"), [("mean", 4.0), ("median", 3.0), ("most_frequent", 1.0), (-1, -1.0)]
)
def test_empty_cells_are_filled_from_the_training_part(fed, with_, value):
    rows = table(["1", "", "1", "5", "9"], held=["", "70"])
    step = {"type": "fill", "columns": ["x"], "with": with_, "flag": True}
    made, config = fed(rows, [step], ["x"])
    assert column(made.train).tolist() == [1, value, 1, 5, 9]
    assert column(made.validation).tolist() == [value, 70]
    assert column(made.train, "x_missing").tolist() == [0, 1, 0, 0, 0]
    assert any(f"2 of 7 cells are empty, filled with {value:g}" in note for note in made.notes)
    for gap in ("", None, float("nan")):
        samples, told = predicted(made, config, x=[gap])
        assert (column(samples).tolist(), column(samples, "x_missing").tolist()) == ([value], [1])
        assert told == [f"column 'x': 1 of 1 cell is empty, filled with {value:g}"]


def test_a_cell_named_by_missing_is_filled_and_words_get_the_most_frequent(fed):
    rows = table(["b", "?", "a", "b", "a"], held=["?"])
    steps = [
        {"type": "fill", "columns": ["x"], "with": "most_frequent"},
        {"type": "categories", "columns": ["x"]},
    ]
    made, config = fed(rows, steps, ["x"], source={"missing": ["?"]})
    # of two equally frequent words the first in the alphabet
    assert column(made.train).tolist() == [[0, 1], [1, 0], [1, 0], [0, 1], [1, 0]]
    assert column(made.validation).tolist() == [[1, 0]]
    samples, _ = predicted(made, config, x=["", "b"])
    assert column(samples).tolist() == [[1, 0], [0, 1]]


def test_gaps_of_json_and_of_whole_numbers_are_filled(write_jsonl, prepared):
    rows = [{"x": x, "y": "ab"[n % 2]} for n, x in enumerate([3, None, 5, 3])]
    data = {
        "source": write_jsonl(rows),
        "inputs": ["x"],
        "target": "y",
        "transforms": [
            {"type": "fill", "columns": ["x"], "with": "most_frequent"},
            {"type": "categories", "columns": ["x"], "as": "index"},
        ],
    }
    made = prepared(data)
    assert column(made.train).tolist() == [1, 1, 2, 1]
    # 3 of JSON, 3.0 of another file and a cell of text are the same category
    samples, _ = predicted(made, DataConfig.model_validate(data), x=[3.0, 5, None])
    assert column(samples).tolist() == [1, 2, 1]
    samples, _ = predicted(made, DataConfig.model_validate(data), x=["5", ""])
    assert column(samples).tolist() == [2, 1]


def test_an_unknown_category_is_told_once_with_its_place(fed):
    rows = table(["red", "blue", "red"], held=["green", "red", "grey"])
    made, config = fed(rows, [{"type": "categories", "columns": ["x"]}], ["x"])
    assert column(made.validation).tolist() == [[0, 0], [0, 1], [0, 0]]
    note = next(note for note in made.notes if "unknown in training" in note)
    assert "2 of 6 cells hold a category unknown in training, such as 'green' in row 4 of" in note
    _, told = predicted(made, config, x=["red", "pink"])
    assert told == [
        "column 'x': 1 of 2 cells hold a category unknown in training, such as 'pink' in row 2 of "
        "the input; it becomes a vector of zeros"
    ]


def test_categories_that_differ_in_case_and_blanks_are_told(fed):
    step = [{"type": "categories", "columns": ["x"]}]
    made, _ = fed(table(["Rome", "rome", "Rome ", "Oslo"]), step, ["x"])
    [note] = [note for note in made.notes if "case" in note]
    assert note == (
        "column 'x': 3 of 4 categories are equal to others but for case and blanks, such as "
        "'Rome', 'Rome ', 'rome': each is one of its own"
    )


def test_new_numbers_in_another_unit_are_told(fed):
    step = [{"type": "standardize", "columns": ["x"]}]
    made, config = fed(table([1.5, 2.5, 3.5, 4.5], held=[2.0]), step, ["x"])
    assert not any("in one unit" in note for note in made.notes)
    _, told = predicted(made, config, x=[1500.0, 2.5, 4500.0, 2500.0, 3.5])
    assert told == [
        "column 'x': 3 of 5 numbers are more than 10 standard deviations from those of training "
        "(mean 3, deviation 1.118): are both in one unit, and scaled alike?"
    ]
    # Few may lie anywhere, and one far from the others is an outlier.
    assert predicted(made, config, x=[4500.0, 4500.0])[1] == []
    assert predicted(made, config, x=[2.5, 2.5, 2.5, 2.5, 4500.0])[1] == []


def test_a_rare_1_among_0_is_not_of_another_unit(fed):
    step = [{"type": "standardize", "columns": ["x"]}]
    made, config = fed(table([1] + [0] * 199, held=[0]), step, ["x"])
    assert predicted(made, config, x=[1] * 5)[1] == []


def test_positions_leave_0_for_unknown_and_tell_how_many_there_are(fed):
    rows = table(["red", "blue", "red"], held=["green"])
    made, _ = fed(rows, [{"type": "categories", "columns": ["x"], "as": "index"}], ["x"])
    assert column(made.train).tolist() == [2, 1, 2]
    assert column(made.train).dtype == torch.int64
    assert column(made.validation).tolist() == [0]
    assert num_positions(made.facts.fitted) == {"x": 3}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"low": 2}, [2, 2, 3, 4, 100]),
        ({"high": 4}, [0, 2, 3, 4, 4]),
        ({"low": 2, "high": 3}, [2, 2, 3, 3, 3]),
        ({"quantiles": [0.25, 0.75]}, [2, 2, 3, 4, 4]),
    ],
    ids=str,
)
def test_clip_brings_numbers_to_its_limits(fed, limits, expected):
    rows = table([0, 2, 3, 4, 100], held=[1000])
    made, _ = fed(rows, [{"type": "clip", "columns": ["x"], **limits}], ["x"])
    assert column(made.train).tolist() == expected
    assert column(made.validation).tolist() == [1000 if limits == {"low": 2} else expected[-1]]


def test_stack_takes_columns_and_their_flags_in_their_order(fed):
    rows = [["a", "b", "y", "part"], [1, "", "p", "train"], [3, 4, "q", "train"]]
    steps = [
        {"type": "fill", "columns": ["b", "a"], "with": 0, "flag": True},
        {"type": "stack"},
    ]
    made, _ = fed(rows, steps, ["a", "b"])
    assert column(made.train, "features").tolist() == [[1, 0, 0, 1], [3, 0, 4, 0]]


def test_evaluation_steps_of_their_own_take_the_figures_of_training(fed):
    step = {"type": "standardize", "columns": ["x"]}
    rows = table([1, 3], held=[5])
    made, _ = fed(rows, [step], ["x"], evaluation=[step])
    assert column(made.validation).tolist() == [3]
    with pytest.raises(DataError, match=r"data\.transforms has no such step"):
        fed(rows, [], ["x"], evaluation=[step])


def test_a_transform_of_ones_own_may_come_first(write_csv, prepared, write_module):
    make = "def make():\n    return lambda sample: {**sample, 'x': sample['x'] * 2}\n"
    name = write_module("own_doubling", make)
    own = {"type": "import", "path": f"{name}:make"}
    data = {
        "source": write_csv([["x", "y"], [1.0, "a"], [3.0, "b"]]),
        "inputs": ["x"],
        "target": "y",
        "transforms": [own, {"type": "standardize", "columns": ["x"]}],
    }
    made = prepared(data, trust=[name])
    assert made.facts.fitted[0].columns == {"x": Scale((4.0,), (2.0,))}
    assert column(made.train).tolist() == [-1, 1]
    data["transforms"][0] = {**own, "random": True}
    with pytest.raises(DataError, match="after a transform of your own"):
        prepared(data, trust=[name])


REFUSED = {
    "words": (["a", "1"], {"type": "standardize"}, r"column 'x' holds 'a' in row 1"),
    "a gap among categories": (["a", ""], {"type": "categories"}, "has an empty cell in row 2"),
    "nothing at all": (["", ""], {"type": "fill", "with": "mean"}, "has no value in the training"),
    "the mean of words": (
        ["a", ""],
        {"type": "fill", "with": "mean"},
        "cannot be filled with a mean",
    ),
    "a number among words": (["a", ""], {"type": "fill", "with": 3}, "be filled with a number"),
    "infinity": (["1", "inf", ""], {"type": "fill", "with": 3}, "holds inf in row 2"),
}


@pytest.mark.parametrize(("cells", "step", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_fitted_is_refused_with_column_and_row(fed, cells, step, said):
    with pytest.raises(DataError, match=said):
        fed(table(cells), [{**step, "columns": ["x"]}], ["x"])


def test_an_empty_cell_is_refused_as_before_where_no_step_fills_it(fed):
    with pytest.raises(DataError, match="has no number in row 2") as caught:
        fed(table(["1", "", "2"]), [{"type": "standardize", "columns": ["x"]}], ["x"])
    assert "{type: fill, columns: [x], with: median}" in caught.value.hint


def test_an_unknown_column_is_told_with_the_nearest(fed):
    with pytest.raises(DataError, match="no input column 'xx' here"):
        fed(table(["1", "2"]), [{"type": "standardize", "columns": ["xx"]}], ["x"])


FORGED = {
    "no list": {"type": "fill"},
    "no columns": [{"type": "fill", "makes_positions": False}],
    "no such type": [{"type": "eval", "columns": {}, "makes_positions": False}],
    "no number": [{"type": "fill", "columns": {"x": {"value": [True]}}, "makes_positions": False}],
    "infinite": [
        {"type": "fill", "columns": {"x": {"value": [float("inf")]}}, "makes_positions": False}
    ],
    "negative deviation": [
        {
            "type": "standardize",
            "columns": {"x": {"mean": [1], "deviation": [-1]}},
            "makes_positions": False,
        }
    ],
    "twice": [
        {"type": "categories", "columns": {"x": {"names": ["a", "a"]}}, "makes_positions": True}
    ],
    "other figures": [
        {"type": "categories", "columns": {"x": {"mean": [1.0]}}, "makes_positions": True}
    ],
}


@pytest.mark.parametrize("document", FORGED.values(), ids=FORGED)
def test_forged_figures_of_a_run_folder_are_refused(document):
    with pytest.raises(ValueError, match=r"."):
        read_learnt(document)


AGE = {"type": "standardize", "columns": ["age"]}


def test_a_step_is_fitted_after_masked_tokens(prepared, write_csv, minilm):
    rows = [["text", "age", "y"], *(["some words", n, "ab"[n % 2]] for n in range(8))]
    tokenize = {"type": "tokenize", "tokenizer": minilm, "column": "text"}
    steps = [tokenize, {"type": "mask_tokens", "probability": 0.5}, AGE]
    data = {"source": write_csv(rows), "inputs": ["text", "age"], "target": "y"}
    ages = column(prepared(data | {"transforms": steps}).train, "age")
    assert torch.equal(
        ages, column(prepared(data | {"transforms": [AGE, *steps[:2]]}).train, "age")
    )


@pytest.fixture
def sounds(tmp_path):
    """Spectrograms with two images, and a number for each."""
    columns = {"sound": np.ones((6, 1, 8, 8), np.float32), "label": np.arange(6) % 2}
    columns |= {"age": np.arange(6.0), "other": np.ones((6, 8), np.float32)}
    np.savez(tmp_path / "sounds.npz", **columns)
    source = {"type": "arrays", "path": str(tmp_path / "sounds.npz")}
    return {"source": source, "inputs": ["sound", "age", "other"], "target": "label"}


def test_a_step_is_fitted_after_masked_bands(prepared, sounds):
    ages = column(prepared(sounds | {"transforms": [{"type": "spec_augment"}, AGE]}).train, "age")
    assert ages.std(correction=0).item() == pytest.approx(1)


def test_no_step_is_fitted_on_what_moves_with_an_image(prepared, sounds):
    flip = {"type": "RandomHorizontalFlip", "with": ["other"]}
    scale = {"type": "standardize", "columns": ["other"]}
    with pytest.raises(DataError, match="cannot be fitted on 'other' after the steps before it"):
        prepared(sounds | {"transforms": [flip, scale]})
    assert prepared(sounds | {"transforms": [flip | {"with": []}, scale]})


@pytest.mark.parametrize("form", ["index", "one_hot"])
def test_more_categories_than_a_run_keeps_are_refused_in_training(monkeypatch, fed, form):
    monkeypatch.setattr(fitted_steps, "MOST_CATEGORIES", 3)
    step = {"type": "categories", "columns": ["x"], "as": form}
    fed(table(["p", "q", "r", "p"], held=["s"]), [step], ["x"])
    with pytest.raises(DataError, match="column 'x' has 4 categories, at most 3 are kept"):
        fed(table(["p", "q", "r", "s"]), [step], ["x"])


def test_as_many_categories_as_are_fitted_can_be_read_back():
    names = [str(number) for number in range(MOST_CATEGORIES)]
    entry = {"type": "categories", "columns": {"x": {"names": names}}, "makes_positions": True}
    assert num_positions(read_learnt([entry])) == {"x": MOST_CATEGORIES + 1}


LARGE = [16777216, 16777217, 5, 5]
FILL = {"type": "fill", "columns": ["x"], "with": "most_frequent"}
CODE = {"type": "categories", "columns": ["x"], "as": "index"}


@pytest.mark.parametrize(
    ("cells", "held"),
    [([*LARGE, ""], [5]), (LARGE, [5]), ([1, 2, ""], [16777217]), ([-16777217, 1, ""], [1])],
    ids=["a gap", "a step before", "validation", "negative"],
)
def test_large_ids_that_floats_would_merge_are_refused(fed, cells, held):
    with pytest.raises(DataError, match=r"holds -?1677721[68] in row .* cannot be told apart"):
        fed(table(cells, held=held), [FILL, CODE], ["x"])


def test_large_ids_that_stay_whole_are_told_apart(fed):
    made, _ = fed(table([*LARGE, 16777219], held=[16777217, 16777218]), [CODE], ["x"])
    assert column(made.train).tolist() == [1, 2, 4, 4, 3]
    assert column(made.validation).tolist() == [2, 0]
    small, _ = fed(table([16777215, 16777214, ""], held=[16777215]), [FILL, CODE], ["x"])
    assert column(small.train).tolist() == [2, 1, 1]


def test_figures_are_read_back_to_the_last_bit():
    document = [
        {
            "type": "standardize",
            "columns": {"x": {"mean": [0.1, 1 / 3], "deviation": [1e-300, 0]}},
            "makes_positions": False,
        },
        {"type": "categories", "columns": {"y": {"names": ["a"]}}, "makes_positions": True},
    ]
    first, second = read_learnt(document)
    assert first.columns == {"x": Scale((0.1, 1 / 3), (1e-300, 0.0))}
    assert (second.columns, num_positions([first, second])) == ({"y": Known(("a",))}, {"y": 2})


@pytest.mark.parametrize(
    ("type_", "ours"),
    [("one_hot", "categories"), ("StandardScaler", "standardize"), ("SimpleImputer", "fill"),
     ("fillna", "fill"), ("Categorify", "categories"), ("winsorize", "clip")],
)  # fmt: skip
def test_the_names_of_other_tools_lead_to_ours(type_, ours):
    source = {"type": "random"}
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"source": source, "transforms": [{"type": type_}]})
    assert caught.value.errors()[0]["ctx"]["hint"] == f"did you mean {ours!r}?"


CELLS = [
    "",
    "1",
    "-2.5",
    "3,5",
    "NA",
    "nan",
    "inf",
    "x",
    "7e400",
    "007",
    " 4",
    "1" * 400,
    "\x1b",
    "é",
]
STEPS = [
    {"type": "fill", "with": "median"},
    {"type": "fill", "with": "most_frequent", "flag": True},
    {"type": "fill", "with": 0},
    {"type": "standardize"},
    {"type": "clip", "quantiles": [0.1, 0.9]},
    {"type": "categories"},
    {"type": "categories", "as": "index"},
]


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_tables_are_fitted_or_refused_in_one_line(count, tmp_path, prepared):
    """Random cells under random steps; what was fitted gives a row the same bits alone."""
    draw = random.Random(5)
    refused: list[str] = []
    for number in range(count):
        cells = [*draw.choices(CELLS, k=3), *draw.choices(["1", "2", "", "5"], k=5)]
        path = tmp_path / f"{number}.csv"
        path.write_text("x,y\n" + "".join(f'"{c}",{"ab"[n % 2]}\n' for n, c in enumerate(cells)))
        steps = [{**step, "columns": ["x"]} for step in draw.sample(STEPS, draw.randint(1, 4))]
        missing = draw.choice([[], ["NA"]])
        data = {
            "source": {"type": "csv", "path": str(path), "missing": missing},
            "inputs": ["x"],
            "target": "y",
            "transforms": steps,
        }
        try:
            made = prepared(data)
        except FinetuneError as error:
            refused.append(error.message)
            continue
        whole = made.train.fetch(range(8)).inputs
        assert all(bool(torch.isfinite(values).all()) for values in whole.values())
        row = draw.randrange(8)
        cell = "" if cells[row] in missing else cells[row]
        alone, _ = predicted(made, DataConfig.model_validate(data), x=[cell])
        for name, values in alone.fetch([0]).inputs.items():
            assert torch.equal(values[0], whole[name][row])
    assert count / 10 < len(refused) < count
    assert all(message and "\n" not in message for message in refused)
