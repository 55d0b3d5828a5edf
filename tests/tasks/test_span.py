"""Scores of answers against torchmetrics, the loss against transformers, windows of one text."""

import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.config.task_keys import SpanTask
from finetune.data.batches import Batch
from finetune.errors import ModelError
from finetune.tasks.answer_scores import score_of
from finetune.tasks.build_task import build_task
from finetune.tasks.records import Asked
from finetune.tasks.span import PredictedAnswer

WORDS = ["the", "a", "An", "cat", "Cat,", "cat.", "(dog)", "dog's", "über", "42", "4,2", "THE", "I"]
EDGES = ["", "the", "a an the", "...", " ", "The cat", "cat the", "!cat", "a-cat", "cat\tdog"]


def text(draw):
    """A short text of words that normalisation changes, or an edge case."""
    if draw.random() < 0.25:
        return draw.choice(EDGES)
    return draw.choice([" ", "  ", ", "]).join(draw.choices(WORDS, k=draw.randint(1, 5)))


@pytest.mark.slow  # 5 s to load torchmetrics.text
def test_scores_are_those_of_torchmetrics():
    from torchmetrics.text import SQuAD

    draw = random.Random(0)
    metric, ours = SQuAD(), []
    for number in range(250):
        right = [text(draw) for _ in range(draw.randint(1, 3))]
        # Without a word an answer stands for none, in SQuAD 2; torchmetrics knows SQuAD 1 alone.
        right = [one for one in right if score_of(one, []).exact_match == 0] or ["the cat"]
        said = draw.choice(right) + draw.choice(["", ".", " a"]) if number % 3 else text(draw)
        ours.append(score_of(said, right))
        answers = {"answer_start": [0] * len(right), "text": right}
        metric.update([{"prediction_text": said, "id": "0"}], [{"answers": answers, "id": "0"}])
        theirs = metric.compute()
        assert ours[-1].f1 == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6), (said, right)
        assert ours[-1].exact_match == float(theirs["exact_match"]) / 100, (said, right)
        metric.reset()
    assert 0.2 < sum(one.exact_match for one in ours) / len(ours) < 0.8


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [("", [], 1), ("cat", [], 0), ("", ["the"], 1), ("the", [], 1), ("", ["cat"], 0)],
)
def test_no_answer_is_right_where_there_is_none_alone(said, right, expected):
    assert score_of(said, right) == (expected, expected)


def task_of(**keys):
    config = SpanTask.model_validate({"type": "span"} | keys)
    return build_task(config, classes=None, trust=(), device=torch.device("cpu"))


# Eight tokens: [CLS] who [SEP] a cat sat down [SEP]; each word of the text is one token.
TEXT = "a cat sat down"
STARTS = [-1, -1, -1, 0, 2, 6, 10, -1]
ENDS = [-1, -1, -1, 1, 5, 9, 14, -1]


def batch_of(targets, right=("cat",), rows=None, padding=0):
    """A batch of the same text, with these targets; padded further if told."""
    count, more = len(targets), [-1] * padding
    codes = [code for one in right for code in (*map(ord, one), -2)]
    columns = {
        "token starts": torch.tensor([STARTS + more] * count),
        "token ends": torch.tensor([ENDS + more] * count),
        "characters": torch.tensor([[*map(ord, TEXT)]] * count),
        "right answers": torch.tensor([codes] * count, dtype=torch.int64).reshape(count, -1),
        "window of": torch.tensor(rows or range(count)),
    }
    return Batch({}, torch.tensor(targets), torch.arange(count), columns=columns)


def logits_of(*spans, size=8):
    """Logits that say these first and last tokens, more or less surely."""
    logits = torch.zeros(len(spans), size, 2)
    for number, (first, last, sure) in enumerate(spans):
        logits[number, first, 0] = logits[number, last, 1] = sure
    return logits


def draw_logits(count, size=8):
    return torch.randn(count, size, 2, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_that_of_transformers_over_the_text_and_the_first_token():
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss

    targets = [(3, 4), (0, 0), (5, 5), (6, 6)]
    logits = draw_logits(4)
    loss = task_of().loss(logits, batch_of(targets))
    masked = logits.clone()
    masked[:, [1, 2, 7]] = -torch.inf
    first, last = torch.tensor(targets).unbind(1)
    theirs = ForQuestionAnsweringLoss(masked[..., 0], masked[..., 1], first, last)
    torch.testing.assert_close(loss, theirs)
    by_hand = (cross_entropy(masked[..., 0], first) + cross_entropy(masked[..., 1], last)) / 2
    torch.testing.assert_close(loss, by_hand)


def test_answers_that_are_not_learnt_count_neither_in_sum_nor_in_count():
    logits = draw_logits(3)
    task = task_of()
    (part,) = task.parts(logits, batch_of([(3, 4), (-100, -100), (0, 0)]))
    assert int(part.count) == 2
    kept = task.loss(logits[[0, 2]], batch_of([(3, 4), (0, 0)]))
    torch.testing.assert_close(part.total / 2, kept)
    (none,) = task.parts(logits[:1], batch_of([(-100, -100)]))
    assert (none.total, int(none.count)) == (0, 0)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_loss_does_not_depend_on_how_a_window_is_cut_or_padded(size):
    targets = [(3, 4), (0, 0), (5, 5), (6, 6), (-100, -100), (3, 3), (4, 6)]
    logits, task = draw_logits(7), task_of()
    total = torch.zeros(())
    count = 0
    for number, rows in enumerate(torch.arange(7).split(size)):
        padded = torch.cat([logits[rows], torch.full((len(rows), number, 2), 9.0)], 1)
        batch = batch_of([targets[row] for row in rows], padding=number)
        (part,) = task.parts(padded, batch)
        total, count = total + part.total, count + part.count
    torch.testing.assert_close(total / count, task.loss(logits, batch_of(targets)))


def figures_of(task, logits, batch):
    task.update_metrics(logits, batch)
    return task.compute_metrics()


def test_an_answer_is_part_of_the_text_alone_and_no_longer_than_allowed():
    sure = torch.zeros(1, 8, 2)
    sure[0, 1] = 50  # a token of the question
    sure[0, 3, 0], sure[0, 6, 1], sure[0, 4, 1] = 9, 9, 8
    (found,) = read(task_of(), sure, batch_of([(0, 0)]))
    assert (found.answer, found.start, found.end) == (TEXT, 0, 14)
    (found,) = read(task_of(longest_answer=3), sure, batch_of([(0, 0)]))
    assert found.row() == {
        "answer": "a cat",
        "start": 0,
        "end": 5,
        "probability": found.probability,
    }
    shares = sure[0].clone()
    shares[[1, 2, 7]] = -torch.inf
    shares = shares.softmax(0)
    assert found.probability == pytest.approx(float(shares[3, 0] * shares[4, 1]))


def read(task, logits, batch):
    """Read the answers to a question on the text."""
    return task.read(logits, Asked(batch, lambda _: {"question": "who", "context": TEXT}))


def test_an_answer_has_no_blanks_at_its_ends_though_its_tokens_have():
    """Those of bytes have the blank before a word, as of GPT-2."""
    batch = batch_of([(4, 5)])
    batch.columns["token starts"][0, 4] -= 1
    (said,) = read(task_of(), logits_of((4, 5, 9)), batch)
    assert (said.answer, said.start, said.end) == ("cat sat", 2, 9)


def test_each_of_several_right_answers_counts_and_the_best_figure_is_taken():
    logits = logits_of((4, 4, 9), (3, 4, 9), (5, 6, 9))
    found = figures_of(task_of(), logits, batch_of([(3, 3)] * 3, right=("a cat sat", "cat")))
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 1 + 2 * 0.5 * 0.5 / (0.5 + 0.5)) / 3)


def test_windows_of_a_text_give_one_answer_the_most_probable_one():
    # The second window of the first text is surer, and right.
    logits = logits_of((5, 5, 3), (4, 4, 9), (6, 6, 9))
    batch = batch_of([(4, 4)] * 3, rows=[0, 0, 1])
    assert figures_of(task_of(), logits, batch)["exact_match"] == 0.5
    # Cut between batches too.
    task = task_of()
    for rows in ([0], [1, 2]):
        part = batch_of([(4, 4)] * len(rows), rows=[[0, 0, 1][row] for row in rows])
        task.update_metrics(logits[rows], part)
    assert task.compute_metrics()["exact_match"] == 0.5


def test_no_answer_is_said_where_it_is_the_most_probable_in_every_window():
    task = task_of(may_be_unanswered=True)
    none, found = (0, 0, 9), (4, 4, 5)
    batch = batch_of([(0, 0)] * 2, right=(), rows=[0, 0])
    assert figures_of(task, logits_of(none, none), batch)["exact_match"] == 1
    assert figures_of(task, logits_of(none, found), batch)["exact_match"] == 0
    (first, second) = read(task, logits_of(none, found), batch)
    assert first.row()["answer"] == ""
    assert first.row()["probability"] > 0.9
    whole = PredictedAnswer.of_windows([first.moved(0), second.moved(20)])
    assert (whole.row()["answer"], whole.row()["start"]) == ("cat", 22)
    # Of a task whose questions all have answers the first token says nothing.
    assert read(task_of(), logits_of(none), batch_of([(3, 3)]))[0].row()["answer"]


def test_metrics_and_predictions_choose_the_same_answer():
    logits, rows = 2 * draw_logits(40), [number // 3 for number in range(40)]
    batch = batch_of([(4, 4)] * 40, right=("cat", "a"), rows=rows)
    for keys in ({}, {"may_be_unanswered": True}):
        task = task_of(**keys)
        records = read(task, logits, batch)
        texts = [[one for one, of in zip(records, rows, strict=True) if of == n] for n in range(14)]
        said = [PredictedAnswer.of_windows(some).row()["answer"] for some in texts]
        scores = [score_of(one, ["cat", "a"]) for one in said]
        found = figures_of(task, logits, batch)
        assert found["f1"] == pytest.approx(sum(one.f1 for one in scores) / 14)
        assert found["exact_match"] == pytest.approx(sum(one.exact_match for one in scores) / 14)


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 3), (1, 7, 2)])
def test_outputs_that_are_no_two_logits_a_token_are_named(shape):
    with pytest.raises(ModelError, match="two logits for each token"):
        task_of().loss(torch.zeros(shape), batch_of([(3, 3)]))
