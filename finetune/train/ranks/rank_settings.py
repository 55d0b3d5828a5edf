"""What several processes change in the settings of a run: passes, device, what is refused."""

from collections.abc import Iterator

import torch

from finetune.config.run import RunConfig
from finetune.config.train import TrainConfig
from finetune.config.transform_keys import Mix
from finetune.errors import Faults, FinetuneError, named
from finetune.tasks.task import Task
from finetune.which_rank import Ranks


def shared_settings(settings: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Return the settings with `micro_batch: auto` as the share of a window that a rank takes."""
    if not ranks.is_several or settings.micro_batch != "auto":
        return settings
    share = -(-settings.batch_size // ranks.world)
    return settings.model_copy(update={"micro_batch": share})


def refuse_unshared(config: RunConfig, task: Task, ranks: Ranks, num_samples: int) -> None:
    """Raise if the config asks for what several processes cannot share.

    Args:
        config: The run config.
        task: The task of the run.
        ranks: Which process this is.
        num_samples: Training samples of an epoch.

    Raises:
        FinetuneError: it does; all faults are reported at once.
    """
    faults = Faults()
    if ranks.is_several:
        faults.add(_unshared(config, task, ranks))
        if config.train.sync_norm:
            faults.add(_unsynced(config.train, ranks, num_samples))
    faults.raise_if_any()


def lines_on_sharing(settings: TrainConfig, ranks: Ranks, device: torch.device) -> list[str]:
    """Return lines for the user on what several processes do; none for a single one.

    Args:
        settings: Those of `shared_settings`.
        ranks: Which process this is.
        device: Where its network is.
    """
    if not ranks.is_several:
        return []
    size = settings.pass_size
    passes = -(-settings.batch_size // size)
    lines = [
        f"processes: {ranks.world}, which share the {passes} micro-batches of {size} samples of "
        "each step; each evaluates its share of the batches; metrics of training samples are left "
        "out, as each sees a part of them"
    ]
    if device.type != "cpu":
        lines.append("processes: this release was tested on CPUs only; docs/processes.md says more")
    if passes % ranks.world:
        lines.append(
            f"processes: some wait in each step, as {passes} micro-batches do not divide by "
            f"{ranks.world}; train.micro_batch sets their size"
        )
    return lines


def device_of_rank(wish: str, ranks: Ranks) -> torch.device:
    """Return the device of one of several processes of a machine.

    Raises:
        FinetuneError: the machine has too few GPUs, or the config names one for all processes.
    """
    key = ("train", "device")
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if wish not in ("auto", "cuda"):
        raise FinetuneError(
            f"several processes cannot share the device {wish!r}",
            hint="cuda gives each process a GPU of its own",
            key=key,
        )
    if ranks.local_rank >= torch.cuda.device_count():
        raise FinetuneError(
            f"this machine has {torch.cuda.device_count()} GPUs, and this is process "
            f"{ranks.local_rank + 1} on it",
            hint="start one process for each GPU: torchrun --nproc-per-node",
            key=key,
        )
    return torch.device("cuda", ranks.local_rank)


def _unshared(config: RunConfig, task: Task, ranks: Ranks) -> Iterator[FinetuneError]:
    """Yield what the config asks for and several processes cannot share."""
    hint = "leave it out, or train in one process"
    for number, node in enumerate(config.data.transforms or ()):
        if isinstance(node, Mix):
            yield FinetuneError(
                f"{node.type} mixes samples of a whole window, which {ranks.world} processes share",
                hint=hint,
                key=("data", "transforms", number),
            )
    if task.whole_window_losses:
        yield FinetuneError(
            f"loss {named(task.whole_window_losses)} needs whole windows, which {ranks.world} "
            "processes share",
            hint="train in one process",
            key=("task",),
        )
    if config.task.log_gradient_norms:
        yield FinetuneError(
            f"the gradient of each loss alone is not added up over {ranks.world} processes",
            hint=hint,
            key=("task", "log_gradient_norms"),
        )
    if config.train.batch_size < ranks.world:
        yield FinetuneError(
            f"{config.train.batch_size} samples of a step are fewer than {ranks.world} processes",
            hint="a larger train.batch_size, or fewer processes",
            key=("train", "batch_size"),
        )


def _unsynced(settings: TrainConfig, ranks: Ranks, num_samples: int) -> Iterator[FinetuneError]:
    """Yield what batch norms over the samples of all processes do not go with."""
    if settings.compile:
        yield FinetuneError(
            "a compiled network cannot normalise over the samples of several processes",
            hint="leave out train.compile or train.sync_norm",
            key=("train", "sync_norm"),
        )
    rest = num_samples % settings.batch_size
    if 0 < rest < ranks.world and not settings.drop_last:
        yield FinetuneError(
            f"the last step of each epoch has {rest} of {num_samples} samples, fewer than "
            f"{ranks.world} processes, and with sync_norm each must have one",
            hint="train.drop_last: true leaves that step out",
            key=("train", "sync_norm"),
        )
