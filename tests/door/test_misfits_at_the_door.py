"""What torch raises in a forward pass because of shapes and values is one line; bugs fly."""

import sys

import numpy as np
import pytest
import torch

from finetune.cli.plans import preview
from finetune.errors import ModelError
from finetune.models.shapes import check_form
from finetune.predict import load_predictor

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.table = fault, nn.Linear(4, 3)
        self.other = torch.zeros(5, 2)
        self.attention = nn.MultiheadAttention(4, 1)
    def forward(self, x):
        if len(x) == 8 and torch.is_grad_enabled():
            if self.fault == "raises": raise RuntimeError("the size of my wallet does not match")
            if self.fault == "index": [1, 2][5]
            if self.fault == "key": {}["shape"]
            if self.fault == "operation": x @ self.other
            if self.fault == "width": self.attention(*[x[:, None, :3]] * 3)
            if self.fault == "kernel": x.long().softmax(1)
            if self.fault == "assert": assert len(x) == 0, "the size is wrong"
        return self.table(x)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The user's own package of networks."""
    folder = tmp_path / "code" / "door_nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield "door_nets"
    sys.modules.pop("door_nets", None)


def items(tmp_path, values):
    path = tmp_path / "items.csv"
    lines = (f"{value},{'odd' if value % 2 else 'even'}\n" for value in values)
    path.write_text("item,label\n" + "".join(lines))
    return {"source": {"type": "csv", "path": str(path)}, "inputs": ["item"], "target": "label"}


def table(rows):
    return {
        "layers": [
            {"name": "table", "type": "Embedding", "num_embeddings": rows, "embedding_dim": 4},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    }


CLASSIFY = {"type": "classification"}


@pytest.mark.parametrize("beyond", [50, 250], ids=["the first one", "a far one"])
def test_an_id_beyond_a_table_names_layer_column_value_and_size(small_run, tmp_path, beyond):
    data = items(tmp_path, [*range(2, 40), beyond])
    trainer = small_run(model=table(50), data=data, task=CLASSIFY)
    with pytest.raises(ModelError) as caught:
        trainer.fit()
    message = caught.value.message
    assert f"layer 'table' (Embedding): value {beyond} of column 'item'" in message
    assert "table of 50 rows" in message


def test_an_id_beyond_a_table_is_one_line_in_evaluation(small_run, tmp_path):
    known, new = items(tmp_path, range(40)), tmp_path / "new.csv"
    new.write_text("item,label\n3,odd\n77,odd\n2,even\n")
    data = {"inputs": ["item"], "target": "label"}
    data |= {"train": known["source"], "validation": {"type": "csv", "path": str(new)}}
    with pytest.raises(ModelError, match=r"value 77 of column 'item', row 2 of .*new\.csv, is"):
        small_run(model=table(50), data=data, task=CLASSIFY).fit()


def test_an_id_beyond_a_table_is_one_line_in_prediction(small_run, tmp_path):
    small_run(model=table(50), data=items(tmp_path, range(40)), task=CLASSIFY).fit()
    predictor = load_predictor(tmp_path / "run")
    with pytest.raises(ModelError, match="value -1 of column 'item'"):
        predictor({"item": [1, -1]})


NORM = {
    "layers": [
        {"name": "body", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
NINE = {"source": {"type": "random", "samples": 9, "features": 4, "targets": 3}}


PLAIN_NORM = {"layers": [{"name": "norm", "type": "BatchNorm1d", "affine": False}]}
PLAIN_NORM["layers"] += NORM["layers"][-1:]


@pytest.mark.parametrize(
    ("train", "remedy"),
    [
        ({"batch_size": 8}, "drop_last"),
        ({"batch_size": 3, "micro_batch": 2}, "micro_batch"),
    ],
    ids=["last window", "last pass"],
)
@pytest.mark.parametrize("model", [NORM, PLAIN_NORM], ids=["affine", "without parameters"])
def test_a_batch_of_one_under_a_trained_batch_norm_is_told_by_plan_and_training(
    small_config, small_run, model, train, remedy
):
    train = {"epochs": 1} | train
    lints = preview(small_config(model=model, data=NINE, train=train)).lints
    assert [remedy in lint.hint for lint in lints] == [True]
    assert "the batch norm 'norm' trains" in lints[0].message
    with pytest.raises(ModelError, match=r"layer 'norm' \(BatchNorm1d\): a batch of one") as caught:
        small_run(model=model, data=NINE, train=train).fit()
    assert "drop_last" in caught.value.hint


def test_passes_of_one_under_a_trained_batch_norm_are_refused_by_plan(small_config):
    train = {"epochs": 1, "batch_size": 9, "micro_batch": 1}
    with pytest.raises(ModelError, match=r"layer 'norm' \(BatchNorm1d\): a batch of one") as caught:
        preview(small_config(model=NORM, data=NINE, train=train))
    assert "micro_batch must be above 1" in caught.value.hint


@pytest.mark.parametrize(
    ("train", "freeze"),
    [
        ({"batch_size": 8, "drop_last": True}, None),
        ({"batch_size": 3}, None),
        ({"batch_size": 8}, ["norm", "body"]),
    ],
    ids=["dropped", "even", "frozen"],
)
def test_no_note_where_no_trained_batch_norm_sees_one_sample(small_config, train, freeze):
    changes = {"freeze": freeze} if freeze else {}
    config = small_config(model=NORM, data=NINE, train={"epochs": 1} | train, **changes)
    assert preview(config).lints == ()


@pytest.mark.parametrize("width", [3, 5])
def test_samples_of_another_width_name_layer_and_column(small_run, width):
    trainer = small_run()
    (column,) = trainer.splits.train.inputs
    with pytest.raises(ModelError) as caught:
        trainer.model(**{column: torch.zeros(2, width)})
    assert "layer 'body' (Linear): cannot take" in caught.value.message
    assert f"{column!r} (2, {width})" in caught.value.hint


def test_predicting_another_width_is_one_line(small_run, tmp_path):
    small_run().fit()
    with pytest.raises(Exception, match=r"4|width|shape") as caught:
        load_predictor(tmp_path / "run")(np.zeros((2, 7), dtype=np.float32))
    assert type(caught.value).__module__ == "finetune.errors"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        *(("raises", RuntimeError), ("index", IndexError), ("key", KeyError)),
        *(("operation", ModelError), ("width", ModelError), ("kernel", ModelError)),
        ("assert", AssertionError),
    ],
)
def test_a_bug_of_the_users_own_code_keeps_its_type_and_traceback(small_run, package, fault, error):
    net = {"type": "import", "path": "door_nets:Net", "args": {"fault": fault}, "name": "net"}
    trainer = small_run(model={"layers": [net]}, trust=(package,))
    with pytest.raises(error) as caught:
        trainer.fit()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        (
            {"type": "Conv1d", "kernel_size": 3},
            "{type: Unflatten, dim: 1, unflattened_size: [1, 4]}",
        ),
        ({"type": "LSTM"}, "{type: Unflatten, dim: 1, unflattened_size: [4, 1]}"),
        (
            {"type": "Embedding", "num_embeddings": 3},
            "{type: categories, columns: [...], as: index}",
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_vectors_before_a_layer_of_another_form_are_told_with_the_remedy(small_run, layer, hint):
    size = {"Conv1d": "out_channels", "LSTM": "hidden_size", "Embedding": "embedding_dim"}
    layers = [{"name": "first", size[layer["type"]]: 2, **layer}]
    with pytest.raises(ModelError) as caught:
        small_run(model={"layers": layers})
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["Conv1d", "LSTM", "GRU"])
def test_whole_numbers_before_a_layer_of_sequences_are_to_be_looked_up(name):
    with pytest.raises(ModelError) as caught:
        check_form(name, [torch.zeros(2, 4, dtype=torch.int64)], label="layer", key=())
    assert "{type: Embedding, num_embeddings: " in caught.value.hint
    assert "Unflatten" not in caught.value.hint
