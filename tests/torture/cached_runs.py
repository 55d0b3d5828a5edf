"""Runs that are killed while their prefix store is written, and what the next ones make of it.

`python cached_runs.py FOLDER KILLS` reads what to do from standard input, a JSON list a line, and
answers with a line of JSON each. Every run is a process of its own, forked before torch has
computed anything. A run is told by `{"run": name, "cache": name, "lr": rate}`, and by where to die:

- `"pwrite": [n, share]`: in the n-th write, after that share of its bytes;
- `"rename": [n, is_done]`: right before, or after, the n-th file or folder is put in its place.
"""

import json
import os
import signal
import sys
from hashlib import blake2b
from pathlib import Path

from forking import load_what_is_needed_for

from finetune.config.run import RunConfig
from finetune.train.wire import build_trainer

LAYERS = [
    {"name": "low", "type": "Linear", "out_features": 48},
    {"name": "norm", "type": "BatchNorm1d"},
    {"name": "high", "type": "Linear", "out_features": 48},
    {"name": "relu", "type": "ReLU"},
    {"name": "joined", "type": "concat", "inputs": ["norm", "relu"]},
    {"name": "head", "type": "Linear", "out_features": 3},
]
CONFIG = {
    "model": {"layers": LAYERS},
    "data": {
        "source": {"type": "random", "samples": 300, "features": 32, "targets": 3},
        "split": {"validation": 0.1, "test": 0.1},
    },
    "task": {"type": "regression"},
    "freeze": {
        "phases": [
            {"name": "a", "freeze": ["low", "norm"], "until": {"epochs": 2}},
            {"name": "b", "train": ["head"]},
        ]
    },
    "train": {"epochs": 5, "batch_size": 16, "log_every": 1000},
}


def dying_pwrite(number, share, counted):
    """Return `os.pwrite` that dies within a call."""
    write = os.pwrite

    def pwrite(descriptor, data, offset):
        counted["pwrite"] += 1
        if counted["pwrite"] - 1 == number:
            part = memoryview(data).cast("B")
            write(descriptor, part[: int(share * len(part))], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data, offset)

    return pwrite


def dying_rename(number, is_done, counted):
    """Return `os.rename` that dies before or after a call."""
    rename = os.rename

    def renamed(source, target, **folders):
        counted["rename"] += 1
        if counted["rename"] - 1 == number and not is_done:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **folders)
        if counted["rename"] - 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return renamed


def train(folder, run, cache, lr=0.02, use="auto", pwrite=(-1, 0), rename=(-1, False)):
    """Train to the end, or until death; return what a test wants to know."""
    os.environ["FINETUNE_CACHE"] = str(folder / cache)
    counted, said = {"pwrite": 0, "rename": 0}, []
    os.pwrite = dying_pwrite(*pwrite, counted)
    os.rename = dying_rename(*rename, counted)
    config = CONFIG | {"cache": use, "optimizer": {"type": "SGD", "lr": lr, "momentum": 0.5}}
    trainer = build_trainer(RunConfig.model_validate(config), folder / run)
    trainer.reporter.tracker.message = said.append
    trainer.fit()
    digest = blake2b(digest_size=16)
    for tensor in trainer.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    statistics = trainer.cache.statistics
    return counted | {
        "weights": digest.hexdigest(),
        "metrics": trainer.progress.metrics,
        "said": said,
        "answered": statistics.answered,
        "recorded": statistics.recorded,
    }


def begin(folder, order):
    """Start a run in a process of its own; return its number and where it tells its outcome."""
    outcome = folder / f"{order['run']}.json"
    if (child := os.fork()) == 0:
        # nothing of this process may run twice
        try:
            outcome.write_text(json.dumps(train(folder, **order)))
        finally:
            sys.stderr.flush()
            os._exit(1 if not outcome.exists() else 0)
    return child, outcome


def ended(child, outcome):
    """Wait for a run; return what it tells, with the signal that ended it."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = json.loads(outcome.read_text()) if outcome.exists() else {}
    return {"status": status} | told


def main():
    folder = Path(sys.argv[1])
    from finetune.activations import estimate

    estimate._READ_BYTES_PER_S, estimate._READ_S_PER_SAMPLE = 1e18, 0.0
    estimate._WORTH_TRYING, estimate._TRYING_PASSES, estimate._LEAST_SHARE = 0, 0, 0.0
    load_what_is_needed_for(lambda: train(folder, "loaded", "loaded"))
    for line in sys.stdin:
        # the runs of one line go at the same time
        begun = [begin(folder, order) for order in json.loads(line)]
        print(json.dumps([ended(*one) for one in begun]), flush=True)


if __name__ == "__main__":
    main()
