"""`summary.json`: how a run ended, its figures, time and memory."""

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from finetune.activations.split_cache import Statistics
from finetune.redaction import redacted
from finetune.runs.progress import Progress


def summarise(
    progress: Progress,
    device: torch.device,
    cache: Statistics,
    *,
    status: str,
    reason: str | None,
    metrics: Mapping[str, float],
    never_moved: Sequence[str] | None,
    never_ran: Sequence[str],
) -> dict[str, Any]:
    """Return the summary of a run as plain data.

    Args:
        progress: Position of the run.
        device: The device that it ran on.
        cache: Counts of the activation cache.
        status: `done`, `stopped` on request, or `failed`.
        reason: The message of the error that ended a run that failed; else None.
        metrics: Figures of the weights in use.
        never_moved: Trained tensors that still have their first values; None before the end.
        never_ran: Names of the phases that never began.
    """
    return {
        "status": status,
        **({} if reason is None else {"reason": redacted(reason)}),
        "steps": progress.step,
        "stopped_early": progress.stopped_early,
        "never_ran": list(never_ran),
        "metrics": dict(metrics),
        "best": {"value": progress.best.value, "step": progress.best.step},
        "proof_intact": progress.proof_intact,
        "never_moved": None if never_moved is None else list(never_moved),
        "seconds": {name: round(spent, 3) for name, spent in progress.seconds.items()},
        "activation_cache": cache.as_data(),
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "device": str(device),
        "versions": {
            "finetune": version("finetune"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak of memory: on a CUDA device that of torch, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
