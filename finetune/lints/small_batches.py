"""Note on batches of one sample, with which a trained batch norm cannot normalise."""

from finetune.config.train import TrainConfig
from finetune.freezing.lints import Lint
from finetune.freezing.plan import Plan


def lone_samples(plan: Plan, settings: TrainConfig, num_samples: int) -> tuple[Lint, ...]:
    """Return a note if a trained batch norm sees a single sample in some forward pass.

    Args:
        plan: The phases. A batch norm counts as trained if one of them does not freeze it.
        settings: Sizes of windows and passes.
        num_samples: Number of training samples.
    """
    norms = {param.name for param in plan.inventory if "_BatchNorm" in param.types}
    trained = [
        phase
        for phase in plan.phases
        # In training mode a frozen batch norm normalises by the batch as well.
        if (norms - phase.frozen and phase.modules.trained_norm == "train")
        or (norms & phase.frozen and phase.modules.norm == "train")
    ]
    whole, rest = divmod(num_samples, settings.batch_size)
    sizes = [settings.batch_size] if whole else []
    sizes += [rest] if rest and not settings.drop_last else []
    alone = [size for size in sizes if size % settings.pass_size == 1 or settings.pass_size == 1]
    if not trained or not alone:
        return ()
    is_last = alone == [rest]
    where = "the last window of every epoch" if is_last else f"each window of {alone[0]} samples"
    pass_size = f" in passes of {settings.pass_size}" if alone[0] > 1 else ""
    return (
        Lint(
            ("train", "batch_size") if is_last else ("train", "micro_batch"),
            f"{where}{pass_size} leaves a batch of one sample, and the batch norm {min(norms)!r} "
            "trains: torch refuses it, or takes its statistics from that sample alone",
            "train.drop_last: true leaves out the last, smaller window"
            if is_last
            else "choose a micro_batch that leaves no single sample",
        ),
    )
