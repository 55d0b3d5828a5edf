"""Notes on normalization layers that train: held for nothing, not averaged, over processes."""

from torch import nn

from finetune.config.train import TrainConfig
from finetune.errors import named
from finetune.freezing.apply import frozen_modules, trained_norms
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan
from finetune.lints.small_batches import by_the_batch


def idle_holds(model: nn.Module, plan: Plan) -> tuple[Lint, ...]:
    """Return a note if `trained_norm: eval` changes nothing in any phase.

    Only norms that keep running statistics behave otherwise in evaluation mode: batch norms do, and
    layer norms do not.

    Args:
        model: The network.
        plan: The phases.
    """
    asked = [phase for phase in plan.phases if phase.modules.trained_norm == "eval"]
    if not asked or any(_with_statistics(model, phase) for phase in asked):
        return ()
    return (
        Lint(
            ("freeze", "modules", "trained_norm"),
            "trained_norm: eval has no effect: no norm that trains keeps running statistics",
            "leave it out",
        ),
    )


def statistics_left_out(model: nn.Module, plan: Plan, settings: TrainConfig) -> tuple[Lint, ...]:
    """Return a note if weights are averaged, and running statistics beside them move.

    Args:
        model: The network.
        plan: The phases.
        settings: `train:` of the config.
    """
    if settings.average is None:
        return ()
    moving = [phase for phase in plan.phases if phase.modules.trained_norm == "train"]
    found = [name for phase in moving for name in _with_statistics(model, phase)]
    if not found:
        return ()
    return (
        Lint(
            ("train", "average"),
            f"running statistics are not averaged: in evaluation {found[0]!r} uses those of the "
            "weights as trained",
            "where they are pretrained, freeze: {modules: {trained_norm: eval}} leaves them so",
        ),
    )


def norms_of_several(model: nn.Module, plan: Plan, settings: TrainConfig) -> tuple[Lint, ...]:
    """Return a note on what batch norms that train do where several processes train.

    Args:
        model: The network.
        plan: The phases.
        settings: `train:` of the config.
    """
    found = sorted({name for phase in plan.phases for name in by_the_batch(model, phase)})
    if settings.sync_norm and not found:
        return (
            Lint(
                ("train", "sync_norm"),
                "sync_norm has no effect: no batch norm trains",
                "leave it out",
            ),
        )
    if settings.sync_norm:
        return (
            Lint(
                ("train", "sync_norm"),
                f"in a single process {named(found)} normalises over its own passes, and over the "
                "samples of all where torchrun starts several",
                "docs/processes.md says what that costs",
            ),
        )
    # Whoever leaves `parallel` at `auto` most often trains in one process.
    if settings.parallel == "auto" or not found:
        return ()
    return (
        Lint(
            ("train", "parallel"),
            f"of several processes each normalises over its own micro-batch in {named(found)}",
            "train.sync_norm: true normalises over the samples of all; "
            "freeze: {modules: {trained_norm: eval}} keeps pretrained statistics",
        ),
    )


def _with_statistics(model: nn.Module, phase: Phase) -> list[str]:
    """Return the names of the norms that train in a phase and keep running statistics."""
    norms = trained_norms(model, frozen_modules(model, phase.frozen))
    # By their buffers: a batch norm may be made without running statistics.
    return [name for name, one in norms.items() if any(True for _ in one.buffers(recurse=False))]
