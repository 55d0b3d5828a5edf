"""Note on batches of one sample, with which a trained batch norm cannot normalise."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.config.train import TrainConfig
from finetune.freezing.apply import frozen_modules
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Phase, Plan


def lone_samples(
    model: nn.Module, plan: Plan, settings: TrainConfig, num_samples: int
) -> tuple[Lint, ...]:
    """Return a note if a trained batch norm sees a single sample in some forward pass.

    Args:
        model: The network.
        plan: The phases. A batch norm counts as trained if one of them does not freeze it.
        settings: Sizes of windows and passes.
        num_samples: Number of training samples.
    """
    trained = [name for phase in plan.phases for name in by_the_batch(model, phase)]
    whole, rest = divmod(num_samples, settings.batch_size)
    sizes = [settings.batch_size] if whole else []
    sizes += [rest] if rest and not settings.drop_last else []
    # In passes of one sample each is alone, and the remainder by 1 is 0.
    alone = [size for size in sizes if size % settings.pass_size == 1 or settings.pass_size == 1]
    if not trained or not alone:
        return ()
    is_last = alone == [rest]
    where = "the last window of every epoch" if is_last else f"each window of {alone[0]} samples"
    pass_size = f" in passes of {settings.pass_size}" if alone[0] > 1 else ""
    return (
        Lint(
            ("train", "batch_size") if is_last else ("train", "micro_batch"),
            f"{where}{pass_size} leaves a batch of one sample, and the batch norm {min(trained)!r} "
            "trains: torch refuses it, or takes its statistics from that sample alone",
            "train.drop_last: true leaves out the last, smaller window"
            if is_last
            else "choose a micro_batch that leaves no single sample",
        ),
    )


def by_the_batch(model: nn.Module, phase: Phase) -> list[str]:
    """Return the names of the batch norms that normalise by the batch in a phase."""
    # By module: one without weight and bias normalises as well.
    frozen = frozen_modules(model, phase.frozen)
    norms = [name for name, one in model.named_modules() if isinstance(one, _BatchNorm)]
    modes = phase.modules
    # In training mode a frozen batch norm normalises by the batch as well.
    return [n for n in norms if (modes.norm if n in frozen else modes.trained_norm) == "train"]
