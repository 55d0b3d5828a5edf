"""Stop a run at every step, and go on from each stop in a fork of its own.

python forked_stops.py CONFIG FOLDER: trains one unbroken run that keeps a checkpoint of every step,
then for each of its steps a copy that was stopped there. Prints a JSON line with the steps at which
the copy ended otherwise. Each attempt is a fork of this process, which never runs torch itself.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from forking import in_a_fork, load_what_is_needed_for

from finetune.bits import fingerprint
from finetune.config.loader import load_config
from finetune.optim.groups import state_by_name
from finetune.tracking.json_lines import read_metrics
from finetune.train.wire import build_trainer

_HIDDEN = ("time/", "memory/")


def end_of(config: Path, run: Path) -> dict[str, object]:
    """Go on with a run to its end; return all that it leaves, times left out."""
    trainer = build_trainer(load_config(config), run)
    began = trainer.progress.step
    progress = trainer.fit(quiet=True)
    state = state_by_name(trainer.optimizer)
    lines = [
        {key: value for key, value in line.items() if not key.startswith(_HIDDEN)}
        for line in read_metrics(run / "metrics.jsonl")
    ]
    return {
        "began": began,
        "weights": {n: fingerprint(t) for n, t in trainer.model.state_dict().items()},
        "optimizer": {n: {k: fingerprint(t) for k, t in own.items()} for n, own in state.items()},
        "lines": lines,
        "masks": progress.masks,
        "memory": progress.memory,
        "transitions": progress.transitions,
        "proof": hashlib.sha256((run / "freeze_proof.json").read_bytes()).hexdigest(),
    }


def stopped_at(step: int, unbroken: Path, run: Path) -> None:
    """Copy a run as it was when it had just saved a step."""
    later = {
        path.name for path in (unbroken / "checkpoints").iterdir() if path.name > f"step-{step:08d}"
    }
    shutil.copytree(
        unbroken, run, ignore=lambda _, names: later.intersection(names) | {"summary.json"}
    )


def main(config: Path, folder: Path) -> None:
    """Compare the end of every stopped run with that of the unbroken one."""
    unbroken = folder / "unbroken"
    load_what_is_needed_for(lambda: end_of(config, folder / "loaded"))
    expected = in_a_fork(lambda: end_of(config, unbroken))
    steps = [int(path.name[5:]) for path in sorted((unbroken / "checkpoints").iterdir())]
    others = []
    for step in steps[:-1]:
        run = folder / "stopped"
        stopped_at(step, unbroken, run)
        if in_a_fork(lambda run=run: end_of(config, run)) != expected | {"began": step}:
            others.append(step)
        shutil.rmtree(run)
    print(json.dumps({"steps": steps, "otherwise": others, "masks": expected["masks"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
