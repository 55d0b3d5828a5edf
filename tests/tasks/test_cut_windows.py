"""Every task with every loss: a window has one loss however it is cut, or is not cut at all.

Samples of a window differ in what counts in them (words, pixels, answers, targets that are there),
so that a mean of the means of its micro-batches would be another loss. One sample has nothing to
learn.
"""

from typing import Any, NamedTuple, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from finetune.config.loss_keys import Loss
from finetune.config.task_keys import Task as TaskConfig
from finetune.config.task_list_keys import ShortTask
from finetune.config.train import TrainConfig
from finetune.data.batches import Batch
from finetune.data.media.pixel_classes import IGNORED
from finetune.data.targets.listed_targets import KNOWN
from finetune.errors import FinetuneError
from finetune.tasks.build_task import build_task
from finetune.tasks.task import add_up
from finetune.tasks.task_facts import TrainingClasses, TrainingCounts
from finetune.tasks.whole_windows import refuse_cut_windows
from finetune.tasks.window_mean import WindowMean

COUNT = 7
CLASSES = ("cat", "dog", "eel")
PACKAGE = """
class Own:
    metrics = {}
    def loss(self, outputs, batch):
        return (outputs - batch.target).square().mean(1)
    def read(self, outputs):
        return [{} for _ in outputs]
class Counted(Own):
    def loss(self, outputs, batch):
        there = batch.target > 0
        return ((outputs - batch.target).square() * there).sum(), there.sum()
class Whole(Own):
    def loss(self, outputs, batch):
        return (outputs - batch.target).square().max()
    loss.whole_window = True
"""


@pytest.fixture(autouse=True)
def package(make_package):
    make_package("cut_package", PACKAGE)


class Window(NamedTuple):
    """Outputs of a network, by layer or alone, and the samples they are of."""

    outputs: dict[str, torch.Tensor]
    batch: Batch


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape, top):
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(1))


def window(outputs, target, **columns):
    found = outputs if isinstance(outputs, dict) else {"": outputs}
    return Window(found, Batch({}, target, torch.arange(COUNT), columns=columns))


def ignoring(target, share=0.3):
    """Leave parts of the targets out, and all of the first sample."""
    gone = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < share
    gone[0] = True
    return target.masked_fill(gone, IGNORED)


def answers():
    """Windows of a question and a text of four words, the first without an answer to learn."""
    starts, ends = [-1, -1, -1, 0, 2, 6, 10, -1], [-1, -1, -1, 1, 5, 9, 14, -1]
    targets = [(-100, -100), (3, 4), (0, 0), (5, 5), (6, 6), (3, 3), (4, 6)]
    columns = {
        "token starts": torch.tensor([starts] * COUNT),
        "token ends": torch.tensor([ends] * COUNT),
        "characters": torch.tensor([[*map(ord, "a cat sat down")]] * COUNT),
        "right answers": torch.tensor([[*map(ord, "cat"), -2]] * COUNT),
        "window of": torch.arange(COUNT),
    }
    return window(normal(COUNT, 8, 2), torch.tensor(targets), **columns)


def of_list():
    outputs = {"a": normal(COUNT, 3), "b": normal(COUNT, 1, seed=3)}
    known = torch.tensor([False, True, True, False, True, False, True])
    columns = {"kind": whole(COUNT, top=3), "size": normal(COUNT, seed=4), KNOWN + "size": known}
    return window(outputs, None, **columns)


FORMS = {
    "classification": ({}, CLASSES, lambda: window(normal(COUNT, 3), whole(COUNT, top=3))),
    "multilabel": (
        {}, CLASSES, lambda: window(normal(COUNT, 3), whole(COUNT, 3, top=2).float()),
    ),
    "regression": ({}, None, lambda: window(normal(COUNT, 2), normal(COUNT, 2, seed=5))),
    "token_classification": (
        {"metrics": ["accuracy"]}, CLASSES,
        lambda: window(normal(COUNT, 5, 3), ignoring(whole(COUNT, 5, top=3))),
    ),
    "segmentation": (
        {"classes": [*CLASSES]}, CLASSES,
        lambda: window(normal(COUNT, 3, 4, 5), ignoring(whole(COUNT, 4, 5, top=3))),
    ),
    "similarity": (
        {"score_range": [0, 2]}, None,
        lambda: window(normal(COUNT, 2, 6), whole(COUNT, top=3).float()),
    ),
    "similarity of triplets": (
        {"compares": "triplets"}, None, lambda: window(normal(COUNT, 3, 6), None),
    ),
    "span": ({"may_be_unanswered": True}, None, answers),
    "detection": ({}, CLASSES, None),
    "import": (
        {"path": "cut_package:Own", "args": {}}, None,
        lambda: window(normal(COUNT, 2), normal(COUNT, 2, seed=5)),
    ),
}  # fmt: skip
"""Further keys of each task, its classes, and what makes a window of it."""
CLASS_LOSSES = ("cross_entropy", "smoothed", "weighted", "focal")
SUMS = {
    "classification": (*CLASS_LOSSES, "two losses"),
    "multilabel": ("binary_cross_entropy", "pos_weight", "focal"),
    "regression": ("mse", "l1", "huber"),
    "token_classification": CLASS_LOSSES,
    "segmentation": ("cross_entropy", "smoothed", "weighted", "dice"),
    "similarity": ("mse", "l1", "huber", "contrastive"),
    "similarity of triplets": ("triplet", "cosine triplet"),
    "span": ("cross_entropy",),
    "import": ("mean of samples",),
}
"""The losses of each task that are sums over samples, words, pixels or answers."""
WHOLE = {
    "classification": ("triplet", "cosine triplet", "contrastive"),
    "similarity of triplets": ("in_batch_negatives",),
    "detection": ("of the network",),
}
"""The losses of each task that compare samples, or that the network computes."""
LOSSES: dict[str, Any] = {
    **{kind: {"type": kind} for kind in (
        "cross_entropy", "binary_cross_entropy", "focal", "triplet", "contrastive",
        "in_batch_negatives", "mse", "l1", "huber", "dice",
    )},
    "smoothed": {"type": "cross_entropy", "label_smoothing": 0.2},
    "weighted": {"type": "cross_entropy", "class_weights": {"cat": 0.1, "eel": 3.0}},
    "pos_weight": {"type": "binary_cross_entropy", "pos_weight": [0.5, 2.0, 9.0]},
    "cosine triplet": {"type": "triplet", "distance": "cosine"},
    "two losses": [{"type": "cross_entropy"}, {"type": "focal", "weight": 0.5}],
    "of the network": None,
    "mean of samples": None,
}  # fmt: skip


def made(form, loss=None):
    more, classes, _ = FORMS[form]
    config = {"type": form.partition(" ")[0], **more} | ({"losses": loss} if loss else {})
    node = TypeAdapter(TaskConfig).validate_python(config)
    return build_task(node, classes=classes, trust={"cut_package"}, device=torch.device("cpu"))


def step(task, drawn, size):
    """Return the loss of a window and the gradients of its outputs, cut into micro-batches."""
    outputs = {name: values.clone().requires_grad_() for name, values in drawn.outputs.items()}
    rows = [slice(start, start + size) for start in range(0, COUNT, size)]
    parts = [drawn.batch.at(some) for some in rows]
    mean, loss = WindowMean(task.losses, parts), torch.zeros(())
    for some, part in zip(rows, parts, strict=True):
        seen = {name: values[some] for name, values in outputs.items()}
        share = add_up(mean.shares(task.parts(seen.get("", seen), part)))
        share.backward()
        loss += share.detach()
    leaves = list(outputs.values())
    return mean.correct(loss, lambda: leaves), [leaf.grad for leaf in leaves]


def is_the_same_however_cut(task, drawn):
    loss, gradients = step(task, drawn, COUNT)
    assert loss.isfinite()
    assert float(loss) != 0
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    for size in (1, 3):
        other, others = step(task, drawn, size)
        torch.testing.assert_close(other, loss)
        for one, gradient in zip(others, gradients, strict=True):
            torch.testing.assert_close(one, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("form", "loss"), [(form, one) for form in SUMS for one in SUMS[form]])
def test_a_sum_is_the_same_however_its_window_is_cut(form, loss):
    task = made(form, LOSSES[loss])
    assert not task.whole_window_losses
    is_the_same_however_cut(task, FORMS[form][2]())


@pytest.mark.parametrize("name", ["Own", "Counted"])
def test_a_task_of_the_users_own_is_the_same_however_its_window_is_cut(name):
    node = {"type": "import", "path": f"cut_package:{name}"}
    config = TypeAdapter(TaskConfig).validate_python(node)
    task = build_task(config, classes=None, trust={"cut_package"}, device=torch.device("cpu"))
    is_the_same_however_cut(task, FORMS["import"][2]())


def test_a_list_of_tasks_is_the_same_however_its_window_is_cut():
    tasks = [{"type": "classification", "output": "a", "target": "kind"},
             {"type": "regression", "output": "b", "target": "size", "weight": 0.25}]  # fmt: skip
    known = {"kind": TrainingClasses(CLASSES, TrainingCounts(10, (5, 3, 2)))}
    node = TypeAdapter(ShortTask).validate_python(tasks)
    cpu = torch.device("cpu")
    task = build_task(node, classes=None, trust=(), device=cpu, by_target=known)
    is_the_same_however_cut(task, of_list())


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("form", "loss"), [(form, one) for form in WHOLE for one in WHOLE[form]])
def test_a_window_whose_samples_are_compared_is_not_cut(form, loss, size):
    task = made(form, LOSSES[loss])
    with pytest.raises(FinetuneError, match="needs whole"):
        refuse_cut_windows(task, TrainConfig(epochs=1, batch_size=COUNT, micro_batch=size))
    refuse_cut_windows(task, TrainConfig(epochs=1, batch_size=COUNT))


def test_every_task_and_every_loss_is_tried_here():
    types = {get_args(one.model_fields["type"].annotation)[0] for one in members(TaskConfig)}
    assert (
        types
        == {form.partition(" ")[0] for form in FORMS}
        == {form.partition(" ")[0] for form in {**SUMS, **WHOLE}}
    )
    losses = {get_args(one.model_fields["type"].annotation)[0] for one in members(Loss)}
    assert losses - {"import"} <= LOSSES.keys()


@pytest.mark.parametrize("form", [form for form in FORMS if form not in {"detection", "import"}])
def test_any_other_loss_is_refused_or_the_same_however_its_window_is_cut(form):
    tried = {*SUMS.get(form, ()), *WHOLE.get(form, ()), "of the network", "mean of samples"}
    drawn = FORMS[form][2]()
    for loss in [one for one in LOSSES if one not in tried]:
        try:
            task = made(form, LOSSES[loss])
            step(task, drawn, COUNT)
        except (FinetuneError, ValidationError):
            continue
        is_the_same_however_cut(task, drawn)


def members(union):
    """The nodes of a discriminated union."""
    return get_args(get_args(union)[0])
