"""One contestant, once: `python -m contest NAME JOB OUT`. Started by `peers.py`."""

import argparse
import importlib
import json
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from contest.by_hand import Outcome
from contest.job import Job

_NETWORK_MODULES = {
    "text": ("transformers", "transformers.models.bert.modeling_bert"),
    "image": ("torchvision.transforms.v2", "efficientnet_lite_pytorch"),
    "digits": ("sklearn.datasets",),
}
_OWN_MODULES = {
    "ours": ("finetune.train.wire", "contest.ours"),
    "lightning": ("contest.by_lightning",),
    "trainer": ("contest.by_trainer", "transformers.trainer", "accelerate"),
}
"""Imported before the clock of the work starts; the clock of the whole run counts them."""


def main() -> None:
    """Do the work of a job, and write down what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["limit", "ours", "plain", "lightning", "trainer"])
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--override", action="append", default=[])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.name != "ours":
        _measure(args)
        return
    # only ours loads what is ours, and as its command does
    from finetune.process import for_one_task, loading

    with for_one_task():
        _measure(args, loading)


def _measure(
    args: argparse.Namespace, loading: Callable[[], AbstractContextManager[object]] = nullcontext
) -> None:
    job = Job.load(args.job)
    with loading():
        for name in (*_NETWORK_MODULES[job.network], *_OWN_MODULES.get(args.name, ())):
            importlib.import_module(name)
    began, began_cpu = time.perf_counter(), time.process_time()
    outcome = compete(args.name, job, args.epochs or job.epochs, args.out, tuple(args.override))
    figures = {
        "work_seconds": time.perf_counter() - began,
        "work_cpu_seconds": time.process_time() - began_cpu,
        "peak_mib": peak_mib(),
        "accuracy": outcome.accuracy,
        "epoch_ends": [(wall - began, cpu - began_cpu) for wall, cpu in outcome.epoch_ends],
        "weights": digest(outcome.weights),
    }
    args.out.with_suffix(".json").write_text(json.dumps(figures), encoding="utf-8")


def peak_mib() -> float:
    """Return the most resident memory so far, of this program alone."""
    about = Path("/proc/self/status")
    if about.is_file():
        # What `getrusage` tells on Linux begins with the peak of the process that started us.
        lines = about.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def compete(
    name: str, job: Job, epochs: int, folder: Path, overrides: tuple[str, ...] = ()
) -> Outcome:
    """Let a contestant do the work of a job; `folder` is where a run of ours goes."""
    # Each imports what it needs, and nothing that only another one needs.
    match name:
        case "ours":
            from contest.ours import ours

            return ours(job, folder, overrides)
        case "lightning":
            from contest.by_lightning import lightning

            return lightning(job, epochs)
        case "trainer":
            from contest.by_trainer import trainer

            return trainer(job, epochs)
        case _:
            from contest.by_hand import limit, plain

            return limit(job, epochs) if name == "limit" else plain(job, epochs)


def digest(weights: dict[str, Tensor]) -> str:
    """Return a hash of all that was trained."""
    found = blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
