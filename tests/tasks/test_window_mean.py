"""The loss of a window and its gradient do not depend on how the window is cut."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import ModelError
from finetune.tasks.build_task import build_task
from finetune.tasks.task import add_up
from finetune.tasks.window_mean import RunningMeans, WindowMean

PACKAGE = """
import torch, torchmetrics

def counted(tensors):
    def loss(outputs, batch):
        there = batch.target > 0
        total = ((outputs[:, 0] - batch.target).square() * there).sum()
        return total, there.sum() if tensors else int(there.sum())
    return loss

def strange():
    return lambda outputs, batch: (outputs, outputs)

class Share(torchmetrics.Metric):
    higher_is_better = True
    def __init__(self):
        super().__init__()
        self.add_state("seen", torch.tensor(0.0))
    def update(self, outputs, batch):
        self.seen += len(batch) + len(batch.indices)
    def compute(self):
        return self.seen

class Own:
    metrics = {"share": Share()}
    def loss(self, outputs, batch):
        return outputs[:, 0]
    def read(self, outputs):
        return [{"first": row[0], "all": row} for row in outputs]

class Bad(Own):
    def read(self, outputs):
        return [{"it": object()} for _ in outputs]

class Named(Own):
    def read(self, outputs):
        return [{"input": "mine"} for _ in outputs]

class Short(Own):
    def read(self, outputs):
        return [{}]
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def package(make_package):
    make_package("window_package", PACKAGE)


def made(classes=None, **config):
    node = TypeAdapter(TaskConfig).validate_python(config)
    return build_task(node, classes=classes, trust={"window_package"}, device=CPU)


def own(name, **args):
    return {"type": "import", "path": f"window_package:{name}", "args": args}


def samples(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=draw)
    return Batch({"x": inputs}, torch.randn(count, generator=draw), torch.arange(count))


def cut(batch, size):
    parts = zip(
        batch.inputs["x"].split(size),
        batch.target.split(size),
        batch.indices.split(size),
        strict=True,
    )
    return [Batch({"x": x}, target, indices) for x, target, indices in parts]


def gradient(task, window):
    """Return loss and gradient of a step over a window, as `Stepper` computes them."""
    torch.manual_seed(1)
    layer, loss = nn.Linear(5, 1), torch.zeros(())
    mean = WindowMean(task.losses, window)
    for batch in window:
        share = add_up(mean.shares(task.parts(layer(batch.inputs["x"]), batch)))
        share.backward()
        loss += share.detach()
    return mean.correct(loss, layer.parameters), layer.weight.grad


@pytest.mark.parametrize("tensors", [True, False], ids=["tensor", "number"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_loss_with_its_own_count_is_the_mean_over_that_count_however_cut(size, tensors):
    task = made(type="regression", losses=own("counted", tensors=tensors))
    whole = samples(10)
    loss, grad = gradient(task, [whole])
    there = whole.target > 0
    torch.manual_seed(1)
    said = nn.Linear(5, 1)(whole.inputs["x"])[:, 0]
    torch.testing.assert_close(loss, (said - whole.target)[there].square().mean().detach())
    cut_loss, cut_grad = gradient(task, cut(whole, size))
    torch.testing.assert_close(cut_loss, loss)
    torch.testing.assert_close(cut_grad, grad)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_losses_of_samples_are_the_same_however_cut(loss, size):
    task, whole = made(type="regression", losses={"type": loss}), samples(10)
    for one, other in zip(gradient(task, [whole]), gradient(task, cut(whole, size)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_window_with_nothing_to_learn_has_loss_0_and_no_gradient():
    task, batch = made(type="regression", losses=own("counted", tensors=True)), samples(4)
    batch = Batch(batch.inputs, -batch.target.abs() - 1, batch.indices)
    for window in ([batch], cut(batch, 2)):
        loss, grad = gradient(task, window)
        assert loss == 0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_own_counts_beside_other_losses_are_refused_where_the_window_is_cut():
    losses = [own("counted", tensors=True), {"type": "mse"}]
    task, whole = made(type="regression", losses=losses), samples(6)
    gradient(task, [whole])
    with pytest.raises(ModelError, match="gives its own count") as error:
        gradient(task, cut(whole, 3))
    assert "train.micro_batch" in (error.value.hint or "")


def test_a_pair_that_is_no_sum_and_count_is_told():
    task, batch = made(type="regression", losses=own("strange")), samples(4)
    with pytest.raises(ModelError, match="needs a sum and a count"):
        task.parts(torch.ones(4, 1), batch)


def test_the_loss_of_a_split_is_divided_by_its_whole_count():
    task, whole = made(type="regression", losses=own("counted", tensors=True)), samples(9)
    means = RunningMeans()
    outputs = torch.zeros(9, 1)
    for part in cut(whole, 4):
        means.add(task.parts(outputs[: len(part)], part))
    there = whole.target[whole.target > 0]
    assert means.total() == pytest.approx(float(there.square().mean()))


def test_an_imported_task_feeds_its_metrics_with_the_batch_and_reads_its_own_records():
    task = made(**own("Own"))
    batch = samples(3)
    task.update_metrics(torch.ones(3, 2), batch)
    assert task.compute_metrics() == {"share": 6.0}
    rows = [record.row() for record in task.read(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))]
    assert rows == [{"first": 1.0, "all": [1.0, 2.0]}, {"first": 3.0, "all": [3.0, 4.0]}]


@pytest.mark.parametrize(
    ("name", "told"),
    [("Bad", "needs numbers, texts"), ("Short", "one dict"), ("Named", "the sample's name")],
)
def test_records_that_cannot_be_written_are_told(name, told):
    from finetune.tasks.records import Asked

    task, batch = made(**own(name)), samples(3)
    with pytest.raises(ModelError, match=told):
        task.read(torch.ones(3, 1), Asked(batch, lambda number: {}))
