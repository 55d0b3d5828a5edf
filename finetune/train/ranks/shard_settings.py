"""Whether a run shards its weights over the ranks (FSDP2), and what it cannot do then."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import torch

from finetune.config.run import RunConfig
from finetune.distributed import Link
from finetune.errors import Faults, FinetuneError
from finetune.freezing.plan import Phase
from finetune.models.network import Network
from finetune.process import available_memory_bytes
from finetune.runs.progress import Progress
from finetune.train.built import Parts
from finetune.train.precision import Precision
from finetune.train.ranks.alike import Alike
from finetune.train.ranks.one_copy import built_in_turns
from finetune.train.ranks.shards import Shards
from finetune.train.sizes import TensorSize, optimizer_state
from finetune.which_rank import Ranks

_ELEMENTWISE = frozenset(
    ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
) | {"Rprop", "SGD"}
"""Optimizers that update each number by itself, so that a part of a tensor needs no other part."""
_SHARE = 0.8
"""Share of its memory that weights, gradients and state of a process may take without shards."""
_TRIED = 8
"""Samples of the pass that shows which blocks gather their parameters by themselves."""
_GIB = 2**30


def built_by_ranks(
    build: Callable[[], Network],
    config: RunConfig,
    device: torch.device,
    ranks: Ranks,
    num_samples: int,
) -> tuple[Network, list[str]]:
    """Build a network before it is known whether it is sharded.

    Args:
        build: Builds it on the CPU.
        config: The run config.
        device: Where the run trains. A network that is sharded is left on the CPU until then, as
            the device may not hold all of it.
        ranks: Which process of the run this is.
        num_samples: Training samples of an epoch.

    Returns:
        The network, and lines for the user.

    Raises:
        FinetuneError: it cannot be built, or is sharded and the config asks for what does not go
            with it.
    """
    wish = config.train.parallel if ranks.is_several else "ddp"
    if wish == "fsdp2":
        # Before anything is tried out on the CPU, which has other kinds of numbers.
        refuse_unsharded(config, ranks, num_samples)
        return built_in_turns(build, Link(ranks))
    network = build()
    if wish == "auto":
        weights = sum(one.nbytes for one in network.parameters())
        if weights > _SHARE * _memory_bytes(device):
            refuse_unsharded(config, ranks, num_samples)
            return network, []
    return network.to(device), []


def shards_of(config: RunConfig, parts: Parts, link: Link) -> tuple[Shards, list[str]]:
    """Shard the network if the config asks for it; return what is sharded, and lines for the user.

    From here on the network is where the run trains.

    Raises:
        FinetuneError: the config asks for what does not go with it.
    """
    is_wanted, lines = wants_shards(config, parts, link)
    lines = [*parts.lines_on_building, *lines]
    if not is_wanted:
        parts.model.to(parts.device)
        return Shards(link), lines
    # Afterwards there is only one copy of each number, and nothing to compare it with.
    Alike(link, parts.model).check(Progress())
    plan, run = parts.plan, partial(_run_once, parts)
    shards = Shards.of(link, parts.model, plan.inventory, plan.ever_trained, run, parts.device)
    return shards, [*lines, *shards.lines]


def _run_once(parts: Parts) -> None:
    """Call the network with the first training samples."""
    samples = parts.data.train
    rows = torch.arange(min(_TRIED, parts.training.pass_size, len(samples)))
    batch = samples.fetch(rows).to(parts.place)
    with Precision(parts.training.precision, parts.place).autocast():
        parts.model(**batch.inputs)


def wants_shards(config: RunConfig, parts: Parts, link: Link) -> tuple[bool, list[str]]:
    """Return whether the ranks share the weights, and lines for the user on why.

    Args:
        config: The run config.
        parts: The run before step 0.
        link: To the other ranks; the first one decides for all.

    Raises:
        FinetuneError: it does, and the config asks for what does not go with it.
    """
    ranks, wish = link.ranks, config.train.parallel
    if not ranks.is_several and wish == "fsdp2":
        told = (
            "train.parallel: fsdp2 does nothing here: one process shares its weights with no other"
        )
        return False, [f"processes: {told}"]
    if not ranks.is_several or wish == "ddp":
        return False, []
    lines: list[str] = []
    if wish == "auto":
        needs, has = _needed_bytes(config, parts), _memory_bytes(parts.device)
        if not link.first_says(claim=needs > _SHARE * has):
            return False, []
        lines.append(
            f"processes: parallel: auto is fsdp2, as weights, gradients and optimizer state take "
            f"{needs / _GIB:.1f} GiB, and a process has {has / _GIB:.1f}"
        )
    refuse_unsharded(config, ranks, parts.data.order.count)
    lines.append("processes: with fsdp2 the gradients and updates of single blocks are not told")
    return True, lines


def refuse_unsharded(config: RunConfig, ranks: Ranks, num_samples: int) -> None:
    """Raise if the config asks for what sharded weights do not go with.

    Args:
        config: The run config.
        ranks: Which process this is.
        num_samples: Training samples of an epoch.

    Raises:
        FinetuneError: it does; all faults are reported at once.
    """
    faults = Faults()
    faults.add(_unsharded(config, ranks, num_samples))
    faults.raise_if_any()


def _unsharded(config: RunConfig, ranks: Ranks, num_samples: int) -> Iterator[FinetuneError]:
    """Yield what sharded weights do not go with."""
    settings, ddp = config.train, "train.parallel: ddp goes with it"
    if settings.compile:
        yield _refused("a compiled network is not sharded", ("train", "compile"), ddp)
    if settings.precision == "float16":
        hint = f"bfloat16 and float32 need no loss scale; {ddp}"
        yield _refused("the loss scale of float16 is not shared", ("train", "precision"), hint)
    if config.optimizer.type not in _ELEMENTWISE:
        yield _refused(
            f"{config.optimizer.type} needs whole tensors to update them, and each process has "
            "a part",
            ("optimizer", "type"),
            f"AdamW is a safe choice; {ddp}",
        )
    if config.data.on_error == "skip":
        yield _refused(
            "a batch without a sample that can be read would leave the other processes waiting",
            ("data", "on_error"),
            ddp,
        )
    rest = num_samples % settings.batch_size
    if 0 < rest < ranks.world and not settings.drop_last:
        yield _refused(
            f"the last step of each epoch has {rest} of {num_samples} samples, fewer than "
            f"{ranks.world} processes, each of which must have one",
            ("train", "drop_last"),
            f"train.drop_last: true leaves that step out; {ddp}",
        )


def _refused(what: str, key: tuple[str, ...], hint: str) -> FinetuneError:
    return FinetuneError(f"train.parallel: fsdp2: {what}", hint=hint, key=key)


def _needed_bytes(config: RunConfig, parts: Parts) -> int:
    """Return the bytes of weights, gradients and optimizer state in the phase with the most."""
    kept = optimizer_state(parts.plan, config.optimizer, parts.device)
    state = {name: sum(one.size_bytes for one in own.values()) for name, own in kept.items()}

    def trained(phase: Phase) -> int:
        own = [one for one in parts.plan.inventory if one.name not in phase.frozen]
        return sum(TensorSize.of_param(p).size_bytes + state.get(p.name, 0) for p in own)

    weights = sum(one.size_bytes for one in parts.plan.inventory)
    return weights + max(trained(phase) for phase in parts.plan.examples)


def _memory_bytes(device: torch.device) -> int:
    """Return the memory of a process: that of its GPU, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    # torchrun tells how many processes of the run this machine has.
    return available_memory_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
