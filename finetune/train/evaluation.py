"""Loss and metrics over a whole split, without gradients."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from finetune.activations.forward import Forward
from finetune.counting import Counting
from finetune.data.batches import Batch, Samples, windows
from finetune.data.loading.mixing import Mixing
from finetune.data.loading.named_rows import rows_named
from finetune.errors import DataError
from finetune.process import end_if_asked
from finetune.tasks.task import Task
from finetune.tasks.window_mean import RunningMeans
from finetune.train.precision import Precision
from finetune.train.ranks.shared_passes import RankPass, SharedPasses


def evaluate(
    network: Forward,
    task: Task,
    samples: Samples,
    *,
    precision: Precision,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
    left_out: dict[str, str] | None = None,
    collect: Callable[[Any, Batch], None] | None = None,
    shared: SharedPasses | None = None,
) -> dict[str, float]:
    """Return the mean loss and every metric of `task` over `samples`.

    The model is in evaluation mode meanwhile and in its former mode afterwards. No random numbers
    are drawn.

    Args:
        network: Runs the network.
        task: Its losses and metrics.
        samples: One split.
        precision: Number format of the forward pass, and the device.
        batch_size: Samples of one forward pass.
        between: Called before each forward pass. What it raises ends the evaluation.
        left_out: Receives, by metric, why it is not defined on these samples and has no figure.
        collect: Receives outputs and batch of each forward pass, on its device.
        shared: Shares the forward passes with other processes of the run; None to run them all.
    """
    model = network.model
    was_training = model.training
    model.eval()
    count, means = 0, RunningMeans()
    # In a log each evaluation has its line of figures.
    counting = Counting(f"evaluating {samples.name}".rstrip(), "samples", is_logged=False)

    def before(batch: Batch) -> None:
        end_if_asked()
        between()
        counting.at(count, count / len(samples))

    run = partial(_passes, network, samples, precision, before)
    try:
        with torch.no_grad():
            cuts = windows(torch.arange(len(samples)), batch_size, drop_last=False)
            passes = run(cuts) if shared is None else shared(run, cuts, precision.device)
            for outputs, placed in passes:
                if not len(placed):
                    continue
                count += len(placed)
                with precision.autocast(), rows_named(samples, placed):
                    parts = task.evaluated_parts(outputs, placed)
                task.update_metrics(outputs, placed)
                if collect is not None:
                    collect(outputs, placed)
                means.add(parts)
    except BaseException:
        # A stop half-way would leave these batches in the figures of the next evaluation.
        task.reset_metrics()
        raise
    finally:
        model.train(was_training)
    if not count:
        raise DataError(f"no {samples.name} sample can be read, so there is nothing to evaluate")
    figures = task.figures_of_losses(means.each())
    return figures | task.compute_metrics(left_out, is_finite=isfinite(figures.get("loss", 0.0)))


def _passes(
    network: Forward,
    samples: Samples,
    precision: Precision,
    before: Callable[[Batch], None],
    cuts: Sequence[Tensor],
) -> Iterator[RankPass]:
    """Run the network on batches, each after a call of `before`."""
    for batch in network.fetches(samples, cuts, epoch=0):
        before(batch)
        placed = batch.to(precision.device).without_skipped()
        if not len(placed):
            # Ranks take turns: one that left out its turn would shift those of the others.
            yield RankPass(None, placed)
            continue
        with precision.autocast(), rows_named(samples, placed):
            outputs = network.forward(placed, samples)
        yield RankPass(outputs, placed)


def rehearse(
    model: nn.Module, task: Task, samples: Samples, *, precision: Precision, mixing: Mixing
) -> None:
    """Run two samples through network, losses and metrics, to report a misfit before training.

    Losses get the targets of training, which may be mixed.

    The model is in evaluation mode meanwhile and in its former mode afterwards; nothing else
    changes.

    Raises:
        ModelError: the network's outputs do not fit the task.
    """
    was_training = model.training
    model.eval()
    # A loss may draw random numbers: the run begins with the same ones whether it was rehearsed.
    with torch.no_grad(), torch.random.fork_rng(), precision.autocast():
        batch = samples.fetch(torch.arange(min(2, len(samples)))).to(precision.device)
        with rows_named(samples, batch):
            outputs = model(**batch.inputs)
        task.evaluated_parts(outputs, *mixing.mixed([batch], 0))
        task.update_metrics(outputs, batch)
    task.reset_metrics()
    model.train(was_training)
