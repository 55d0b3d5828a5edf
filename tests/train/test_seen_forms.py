"""Pictures of answers, boxes, pairs and triplets: the most wrong first, with what is true."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from finetune.config.task_keys import Task
from finetune.data.batches import Batch
from finetune.data.opening import DataFacts
from finetune.data.samples import (
    BETWEEN_ANSWERS,
    CHARACTERS,
    IGNORED,
    RIGHT_ANSWERS,
    TOKEN_ENDS,
    TOKEN_STARTS,
    WINDOW_OF,
)
from finetune.models.detectors import NO_BOX
from finetune.pictures.drawing import Box, Label, Path
from finetune.train.looks.new_seen import new_seen_of
from finetune.train.looks.seen import Inputs
from finetune.train.looks.seen_boxes import matched


def seen_of(**task):
    facts = DataFacts(("input",), "target", ("cat", "dog"), notes=(), sizes={})
    return new_seen_of(TypeAdapter(Task).validate_python(task), facts, "target")


def texts(picture):
    return [shape.text for shape in picture.shapes if isinstance(shape, Label)]


TEXT = "Ann lives in Rome"
SPANS = [(-1, -1), (0, 3), (4, 9), (10, 12), (13, 17)]
"""Characters of each token; the first stands for no answer."""


def answers(said, so, numbers, ignored=()):
    """A batch of one text, with the tokens that the network says and those that are right."""
    rows = len(said)
    logits = torch.zeros(rows, 5, 2)
    for row, (first, last) in enumerate(said):
        logits[row, first, 0] = logits[row, last, 1] = 9.0
    starts, ends = (torch.tensor([[span[side] for span in SPANS]] * rows) for side in (0, 1))
    right = [
        [*map(ord, TEXT[SPANS[first][0] : SPANS[last][1]] if first else ""), BETWEEN_ANSWERS]
        for first, last in so
    ]
    padded = [codes + [-1] * (30 - len(codes)) for codes in right]
    target = torch.tensor([(IGNORED,) * 2 if n in ignored else pair for n, pair in enumerate(so)])
    columns = {
        CHARACTERS: torch.tensor([[*map(ord, TEXT), -1, -1]] * rows),
        RIGHT_ANSWERS: torch.tensor(padded),
        WINDOW_OF: torch.tensor(numbers),
        TOKEN_STARTS: starts,
        TOKEN_ENDS: ends,
    }
    return logits, Batch({}, target, torch.arange(rows), columns=columns)


def test_wrong_answers_are_shown_in_their_text_beside_the_right_ones():
    seen = seen_of(type="span")
    seen.add(*answers([(4, 4), (1, 1), (3, 4), (2, 2)], [(4, 4)] * 3 + [(1, 1)], [5, 6, 7, 8], {3}))
    # A wholly wrong one comes first. Where the answer is not whole in its text, no place is right.
    assert list(seen.shown()) == [1, 3, 2]
    pictures = seen.pictures(dict.fromkeys([1, 2, 3], Inputs((), ("where?",))))
    assert pictures["targets"].title == "Predictions beside targets of 3 samples"
    remark = "1 of 4 answers are outside the window"
    assert remark in texts(pictures["targets"])
    said = texts(pictures["most_wrong"])
    assert {"said Ann", "is Rome", "sample 6: F1 0.00", "said in Rome"} <= set(said)
    lines = [s for s in pictures["most_wrong"].shapes if isinstance(s, Box) and s.height == 2]
    ink = [s for s in pictures["most_wrong"].shapes if isinstance(s, Label) and s.colour == "ink"]
    # Above what was said, below what is right: Ann and Rome; lives; in, Rome and Rome.
    assert sorted(line.fill for line in lines) == ["bad"] * 4 + ["good"] * 2
    marked = [word.text for word in ink if " " not in word.text]
    assert marked == ["Ann", "Rome", "lives", "in", "Rome"]
    assert "where? | " in "".join(f"{text} " for text in said)


def test_the_surest_window_speaks_for_its_text():
    logits, batch = answers([(1, 1), (4, 4)], [(4, 4), (4, 4)], [5, 5])
    logits[1] *= 2
    seen = seen_of(type="span")
    for row in (0, 1):
        rows = torch.tensor([row])
        columns = {name: column[rows] for name, column in batch.columns.items()}
        seen.add(logits[rows], Batch({}, batch.target[rows], rows, columns=columns))
    assert list(seen.shown()) == []
    assert seen.pictures({})["targets"].title == "Predictions beside targets of 1 samples"


def test_no_answer_is_said_if_no_window_has_one_as_metrics_judge():
    seen = seen_of(type="span", may_be_unanswered=True)
    # Each first window is surest that there is no answer; the second one of text 5 finds it.
    logits, batch = answers([(0, 0), (4, 4), (0, 0), (0, 0)], [(4, 4)] * 4, [5, 5, 6, 6])
    logits[1] /= 3
    seen.add(logits, batch)
    (worst,) = seen.shown()
    said = texts(seen.pictures({worst: Inputs((), ())})["most_wrong"])
    assert {"said no answer", "sample 6: F1 0.00"} <= set(said)


def test_of_equally_wrong_answers_the_surest_comes_first():
    seen = seen_of(type="span")
    logits, batch = answers([(1, 1), (2, 2), (1, 1)], [(4, 4)] * 3, [5, 6, 7])
    logits[1] /= 3
    logits[2] *= 2
    seen.add(logits, batch)
    assert list(seen.shown()) == [2, 0, 1]


def test_no_answer_has_a_place_of_its_own():
    seen = seen_of(type="span", may_be_unanswered=True)
    seen.add(*answers([(0, 0), (4, 4)], [(4, 4), (0, 0)], [0, 1]))
    pictures = seen.pictures(dict.fromkeys(seen.shown(), Inputs((), ())))
    assert "said no answer" in texts(pictures["most_wrong"])
    assert "is no answer" in texts(pictures["most_wrong"])
    assert "first character of the answer (-1: none)" in texts(pictures["targets"])


def test_boxes_are_drawn_on_their_image_predicted_and_true():
    seen = seen_of(type="detection", threshold=0.5)
    none = [0, 0, 0, 0, 0, NO_BOX]
    found = torch.tensor(
        [
            [[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.4, 1], none],
            [[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 1], none],
        ]
    )
    true = torch.tensor([[[0.0, 0, 10, 11, 0]], [[0, 0, 10, 10, 0]]])
    seen.add(found, Batch({}, true, torch.tensor([3, 4])))
    assert list(seen.shown()) == [4, 3]
    image = Inputs((np.zeros((40, 80, 3), np.uint8),), ())
    pictures = seen.pictures({3: image, 4: image})
    assert pictures["classes"].title == "Precision and recall of 2 of 2 classes, the worst first"
    rings = [shape.colour for shape in pictures["targets"].shapes if isinstance(shape, Path)]
    assert rings == ["first", "bad", "bad", "first", "bad"]
    said = texts(pictures["targets"])
    assert {"said 2 dog", "is 1 cat", "sample 4: 0% of boxes right", "said 1 cat"} <= set(said)


def test_the_most_probable_box_chooses_first_whatever_the_order():
    seen = seen_of(type="detection")
    # The second one overlaps the first true box alone; the first one both of them.
    found = [[0.5, 0, 10.5, 10, 0.6, 0], [0, 0, 7, 10, 0.9, 0]]
    true = [[0.0, 0, 10, 10, 0], [2, 0, 12, 10, 0]]
    for boxes in (found, found[::-1]):
        seen.add(torch.tensor([boxes]), Batch({}, torch.tensor([true]), torch.tensor([3])))
    image = Inputs((np.zeros((40, 80, 3), np.uint8),), ())
    said = texts(seen.pictures({3: image})["targets"])
    assert said.count("sample 3: 100% of boxes right") == 2


def test_a_true_box_counts_for_one_prediction_of_its_class():
    so = np.array([[0.0, 0, 10, 10, 0]])
    said = np.array([[0.0, 0, 10, 4, 0], [0, 0, 10, 10, 1], [0, 0, 10, 9, 0], [0, 0, 10, 10, 0]])
    assert matched(said, so) == [2]
    assert matched(said, so[:0]) == []


def embedded(*angles):
    """Return an embedding in the plane for each angle, in degrees, of one sample."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_scores_of_pairs_are_drawn_beside_their_targets():
    seen = seen_of(type="similarity", score_range=[0, 5])
    outputs = torch.stack([embedded(0, 0), embedded(0, 60)])
    seen.add(outputs, Batch({}, torch.tensor([5.0, 5.0]), torch.tensor([7, 8])))
    assert next(iter(seen.shown())) == 8
    pictures = seen.pictures(dict.fromkeys([7, 8], Inputs((), ("a", "b"))))
    assert "cosine of a pair" in texts(pictures["targets"])
    assert {"said 0.5", "is 1"} <= set(texts(pictures["most_wrong"]))


@pytest.mark.parametrize(
    ("compares", "outputs", "worst"),
    [
        # The second sample is nearer to the partner of the first than to its own.
        ("pairs", [embedded(0, 10), embedded(20, 60)], 5),
        ("triplets", [embedded(0, 10, 50), embedded(20, 60, 20)], 5),
    ],
)
def test_partners_are_compared_with_the_nearest_other(compares, outputs, worst):
    seen = seen_of(type="similarity", compares=compares)
    seen.add(torch.stack(outputs), Batch({}, None, torch.tensor([4, 5])))
    assert list(seen.shown()) == [worst]
    pictures = seen.pictures({5: Inputs((), ("a",))})
    assert pictures["targets"].title.startswith("cosine of its own beside cosine of the")
    assert "cosine 0.766 with its own" in "".join(texts(pictures["most_wrong"]))


def test_a_single_pair_has_no_picture():
    seen = seen_of(type="similarity", compares="pairs")
    seen.add(torch.stack([embedded(0, 10)]), Batch({}, None, torch.tensor([4])))
    assert (list(seen.shown()), seen.pictures({})) == ([], {})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"type": "span"}, "no place of an answer for each text"),
        ({"type": "detection"}, r"boxes of a detector \(B, D, 6\) are needed"),
        ({"type": "similarity"}, r"2 embeddings a sample \(B, 2, D\)"),
        ({"type": "similarity", "compares": "pairs"}, r"2 embeddings a sample \(B, 2, D\)"),
        ({"type": "similarity", "compares": "triplets"}, r"3 embeddings a sample \(B, 3, D\)"),
    ],
    ids=str,
)
def test_outputs_of_another_form_have_no_pictures(task, message):
    with pytest.raises(ValueError, match=message):
        seen_of(**task).add(torch.zeros(4, 7), Batch({}, torch.zeros(4), torch.arange(4)))
