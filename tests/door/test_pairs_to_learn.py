"""Pairs and triplets of texts: from tables to predictions, and what is refused."""

import csv
import json

import pytest

from finetune.errors import DataError, FinetuneError
from finetune.train.after.trained import evaluate_run
from finetune.train.build import build_parts
from finetune.train.wire import build_trainer

ROWS = [
    ("the good film", "good film", "bad", 5),
    ("the bad film", "bad", "yes", 4),
    ("yes", "no", "the film", 0),
    ("no no", "the film", "good", 1),
    ("good", "the good good", "no", 3),
    ("bad bad", "film", "yes yes", 2),
]
SCORES = {"type": "similarity", "score_range": [0, 5]}
PAIRS = {"type": "similarity", "compares": "pairs", "metrics": ["mrr"]}
TRIPLETS = {"type": "similarity", "compares": "triplets"}


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of texts that one encoder takes, each by itself."""

    def make(task=SCORES, target="score", names=("first", "second"), rows=ROWS, layers=None):
        with (tmp_path / "data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["first", "second", "third", "score", "label"])
            writer.writerows([*row, "x"] for row in rows * 4)
        encoder = {"name": "first_text", "type": "transformers", "path": bert, "inputs": ["first"]}
        others = [
            {"name": f"{name}_text", "type": "shared", "layer": "first_text", "inputs": [name]}
            for name in names[1:]
        ]
        both = {"name": "both", "type": "stack", "inputs": [f"{name}_text" for name in names]}
        source = {"type": "csv", "path": str(tmp_path / "data.csv")}
        data = {"source": source, "inputs": list(names), "split": {"validation": 0.25, "test": 0.2}}
        return small_config(
            model={"layers": layers or [encoder, *others, both]},
            data=data | ({} if target is None else {"target": target}),
            task=task,
            train={"epochs": 2, "batch_size": 6},
        )

    return make


@pytest.mark.parametrize(
    ("task", "target", "names", "figures", "said"),
    [
        (SCORES, "score", ("first", "second"), {"spearman"}, {"cosine", "score"}),
        (PAIRS, None, ("first", "second"), {"mrr"}, {"cosine"}),
        (
            TRIPLETS,
            None,
            ("first", "second", "third"),
            {"triplet_accuracy"},
            {"cosine", "cosine_of_other"},
        ),
    ],
    ids=["scores", "pairs", "triplets"],
)
def test_texts_are_learnt_evaluated_and_predicted(
    config, tmp_path, call, task, target, names, figures, said
):
    trainer = build_trainer(config(task, target, names), tmp_path / "run")
    trainer.fit(quiet=True)
    found = evaluate_run(tmp_path / "run", "test")
    assert {*found} == {"loss", *figures}
    shown = call("predict", tmp_path / "run", tmp_path / "data.csv", "--without-columns")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 24
    assert all(row.keys() - {"input"} == said for row in rows)
    call("predict", tmp_path / "run", tmp_path / "data.csv", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    assert [float(row["cosine"]) for row in table] == [row["cosine"] for row in rows]
    assert all(-1.0001 <= row["cosine"] <= 1.0001 for row in rows)


def test_a_score_outside_of_the_range_is_named_with_its_row(config):
    rows = [*ROWS[:2], ("yes", "no", "no", 7), *ROWS[3:]]
    with pytest.raises(
        DataError, match=r"'score' holds 7 in row 3 .* and 3 more rows; the task takes"
    ):
        build_parts(config(rows=rows))
    with pytest.raises(DataError, match=r"holds 5 in row 1 .*takes -1 to 1"):
        build_parts(config({"type": "similarity"}))


def test_a_target_of_a_task_that_has_none_is_refused(config):
    with pytest.raises(DataError, match="'similarity' learns from its inputs alone") as error:
        build_parts(config(PAIRS, "score"))
    assert error.value.key == ("data", "target")


def test_a_column_called_label_is_no_target_of_pairs(config):
    assert build_parts(config(PAIRS, None)).data.facts.target is None


def test_a_pair_that_is_encoded_as_one_text_is_told_what_it_lacks(config, bert):
    layers = [{"name": "encoder", "type": "transformers", "path": bert}]
    with pytest.raises(FinetuneError, match="2 embeddings a sample") as error:
        build_parts(config(layers=layers))
    assert "type: stack" in error.value.hint
