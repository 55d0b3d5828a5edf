"""Token classification: entities of tags, metrics, the loss over words, predictions as spans."""

import random

import pytest
import torch
from nervaluate import Evaluator
from pydantic import TypeAdapter
from torch.nn import functional as F

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError
from finetune.tasks.build_task import build_task
from finetune.tasks.entities import Entity, entities_of
from finetune.tasks.records import Asked

TAGS = ("B-org", "B-per", "I-org", "I-per", "O")


def task_of(classes=TAGS, **keys):
    config = TypeAdapter(TaskConfig).validate_python({"type": "token_classification"} | keys)
    return build_task(config, classes=classes, trust=(), device=torch.device("cpu"))


def batch_of(rows, classes=TAGS, extra=0):
    """A batch whose targets are tags by name, None for tokens that begin no word."""
    length = max(map(len, rows)) + extra
    numbers = [[-100 if tag is None else classes.index(tag) for tag in row] for row in rows]
    target = torch.tensor([row + [-100] * (length - len(row)) for row in numbers])
    return Batch({}, target, torch.arange(len(rows)))


def logits_for(rows, batch, classes=TAGS):
    """Logits that choose the tags of `rows`, and anything where there is no tag."""
    torch.manual_seed(0)
    logits = torch.rand(*batch.target.shape, len(classes))
    for number, row in enumerate(rows):
        for place, tag in enumerate(row):
            if tag is not None:
                logits[number, place, classes.index(tag)] = 9.0
    return logits


def figures_of(rows, predicted, left_out=None, **keys):
    task, batch = task_of(metrics=["f1", "precision", "recall", "accuracy"], **keys), batch_of(rows)
    # In two batches, as an evaluation sees a split.
    outputs = logits_for(predicted, batch)
    for some in (slice(None, 1), slice(1, None)):
        part = Batch({}, batch.target[some], batch.indices[some])
        if len(part):
            task.update_metrics(outputs[some], part)
    return task.compute_metrics(left_out)


def drawn(seed):
    """Right and predicted tags of a few texts, at random; half of the predictions are right."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(draw.randint(1, 5))]
    right = [draw.choices(TAGS, [1, 1, 2, 2, 3], k=length) for length in lengths]
    said = [[tag if draw.random() < 0.6 else draw.choice(TAGS) for tag in row] for row in right]
    return right, said


@pytest.mark.parametrize("seed", range(200))
def test_figures_of_entities_are_those_of_nervaluate(seed):
    right, said = drawn(seed)
    there = Evaluator(right, said, tags=["org", "per"], loader="list").evaluate()
    strict = there["overall"]["strict"]
    left_out = {}
    found = figures_of(right, said, left_out)
    words = [(a, b) for rows in zip(right, said, strict=True) for a, b in zip(*rows, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in words) / len(words))
    if strict.possible:
        expected = {"f1": strict.f1, "precision": strict.precision, "recall": strict.recall}
        assert {name: found[name] for name in expected} == pytest.approx(expected)
    else:
        assert left_out.keys() == {"f1", "precision", "recall"}


def test_a_split_without_an_entity_has_no_figure_of_entities_and_says_why():
    left_out = {}
    found = figures_of([["O", "O"], ["O"]], [["O", "B-org"], ["O"]], left_out)
    assert found == {"accuracy": pytest.approx(2 / 3)}
    assert left_out["f1"] == "none of 2 texts holds an entity"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-a I-a O I-a", [("a", 0, 2), ("a", 3, 4)]),
        ("B-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),
        ("S-a B-b I-b E-b I-b", [("a", 0, 1), ("b", 1, 4), ("b", 4, 5)]),
        ("U-a B-b L-b", [("a", 0, 1), ("b", 1, 3)]),
        ("B-first-name I-first-name", [("first-name", 0, 2)]),
        ("O NN B- X-a", []),
    ],
    ids=["no B", "side by side", "other type", "BIOES", "BILOU", "dash in a type", "none"],
)
def test_tags_of_words_are_read_as_entities(tags, expected):
    assert entities_of(tags.split()) == [Entity(*one) for one in expected]


def test_entities_of_one_text_do_not_go_on_in_the_next():
    rows = [["O", "B-org"], ["I-org", "O"]]
    assert figures_of(rows, [["O", "B-org"], ["O", "O"]])["recall"] == 0.5


def test_tokens_that_begin_no_word_are_between_words_of_one_entity():
    rows = [["B-org", None, None, "I-org", None]]
    assert figures_of(rows, rows)["f1"] == 1


def test_entities_of_tags_that_have_none_are_refused_and_accuracy_is_not():
    with pytest.raises(FinetuneError, match=r"'f1' counts entities, and 'DT', 'NN' are neither"):
        task_of(("DT", "NN", "O"))
    assert [one.name for one in task_of(("DT", "NN"), metrics=["accuracy"]).metrics] == ["accuracy"]


def test_words_of_one_class_alone_are_refused():
    with pytest.raises(FinetuneError, match="every word is of the same class, 'O'"):
        task_of(("O",))


ROWS = [["O", None, "B-org"], ["O"], [None, None], ["B-per", "I-per", "O", "O", None], ["O", "O"]]
LOSSES = {
    "plain": {"type": "cross_entropy"},
    "smoothed": {"type": "cross_entropy", "label_smoothing": 0.2},
    "weighted": {"type": "cross_entropy", "class_weights": {"O": 0.1, "B-per": 3.0}},
    "focal": {"type": "focal"},
}


@pytest.mark.parametrize("loss", ["plain", "smoothed", "weighted"])
def test_the_loss_is_the_mean_over_words_of_torch(loss):
    keys, batch = LOSSES[loss], batch_of(ROWS)
    outputs = torch.randn(*batch.target.shape, len(TAGS))
    weights = [keys.get("class_weights", {}).get(name, 1.0) for name in TAGS]
    expected = F.cross_entropy(
        outputs.flatten(0, 1),
        batch.target.flatten(),
        torch.tensor(weights),
        label_smoothing=keys.get("label_smoothing", 0.0),
    )
    torch.testing.assert_close(task_of(losses=[keys]).loss(outputs, batch), expected)


def test_a_batch_without_a_word_has_loss_0():
    batch = batch_of([[None], [None, None]])
    outputs = torch.randn(2, 2, len(TAGS), requires_grad=True)
    loss = task_of().loss(outputs, batch)
    assert loss == 0
    assert not torch.autograd.grad(loss, outputs)[0].any()


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_losses_that_compare_samples_are_refused(loss):
    with pytest.raises(FinetuneError, match=f"{loss} compares samples that have one class each"):
        task_of(losses=[{"type": loss}])


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "mse", "l1", "huber"])
def test_losses_that_would_learn_the_number_of_left_out_tokens_are_refused(loss):
    """One logit fits them, and -100 would be a number to learn."""
    with pytest.raises(FinetuneError, match=f"{loss} takes numbers, not the classes of words"):
        task_of(("B-x", "O"), losses=[{"type": loss}])


@pytest.mark.parametrize("shape", [(5, 4, 5), (5, 5), (5, 5, 4)], ids=["cut", "pooled", "narrow"])
def test_outputs_that_are_not_one_for_each_token_and_class_are_named(shape):
    with pytest.raises(ModelError, match="cannot take"):
        task_of().loss(torch.randn(shape), batch_of(ROWS))


def read(given, words, tags, column="text"):
    """The record of one text: `words` has the number of the word that begins with each token."""
    numbers = torch.tensor([words])
    batch = Batch({}, None, torch.arange(1), columns={f"words of {column}": numbers})
    logits = torch.full((1, len(words), len(TAGS)), 0.0)
    places = [place for place, word in enumerate(words) if word >= 0]
    for place, tag in zip(places, tags, strict=True):
        logits[0, place, TAGS.index(tag)] = 5.0
    (record,) = task_of().read(logits, Asked(batch, lambda number: {column: given}))
    return record.row()


def test_entities_of_a_text_are_given_with_its_characters():
    text = "  Ann  Lee joined Acme"
    row = read(text, [-1, 0, 1, -1, 2, 3, -1], ["B-per", "I-per", "O", "B-org"])
    assert [(one["text"], one["label"]) for one in row["spans"]] == [
        ("Ann  Lee", "per"),
        ("Acme", "org"),
    ]
    assert [text[one["start"] : one["end"]] for one in row["spans"]] == ["Ann  Lee", "Acme"]
    assert row["tags"] == ["B-per", "I-per", "O", "B-org"]
    share = torch.tensor([5.0, 0, 0, 0, 0]).softmax(0)[0].item()
    assert row["spans"][0]["probability"] == pytest.approx(share)


@pytest.mark.parametrize("given", [["Ann", "Lee", "left"], '["Ann", "Lee", "left"]'])
def test_entities_of_a_list_are_given_with_its_words(given):
    row = read(given, [-1, 0, 1, 2], ["B-per", "I-per", "O"])
    (one,) = row["spans"]
    assert (one["text"], one["start"], one["end"]) == ("Ann Lee", 0, 2)


def test_a_word_without_a_token_has_no_tag():
    row = read("Ann Lee left Acme", [-1, 0, 1, -1], ["B-per", "I-per"])
    assert row["tags"] == ["B-per", "I-per", None, None]


def test_one_logit_stands_for_two_classes():
    classes = ("B-x", "O")
    task, batch = task_of(classes), batch_of([["O", "B-x"]], classes)
    one = torch.tensor([[[2.0], [-1.0]]])
    both = torch.cat([torch.zeros_like(one), one], dim=-1)
    torch.testing.assert_close(task.loss(one, batch), task.loss(both, batch))
    task.update_metrics(one, batch)
    assert task.compute_metrics() == {"f1": 1.0, "accuracy": 1.0}
