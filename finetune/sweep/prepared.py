"""Make the parts of a sweep from what is asked: folder, study, proposals, the loop."""

import os
from pathlib import Path

import optuna

from finetune.errors import FinetuneError
from finetune.process import usable_cores
from finetune.sweep.asked import AskedSweep
from finetune.sweep.claims import Claims
from finetune.sweep.judging import judged_by
from finetune.sweep.outcome import digest_of_config, make_home
from finetune.sweep.proposals import Proposals
from finetune.sweep.search_space import SearchSpace
from finetune.sweep.studies import Storage, told_of_storage
from finetune.sweep.sweeping import Say, Sweeping, pruner_of

_TRIALS = 20
"""Trials where neither config nor command line says how many; a grid has all of its own."""
_THREADS = "OMP_NUM_THREADS"
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torchrun tells a process which one it is."""


def prepare(
    asked: AskedSweep,
    say: Say,
    *,
    home: Path | None = None,
    url: str | None = None,
    trials: int | None = None,
    jobs: int = 1,
) -> Sweeping:
    """Return a sweep that is ready to run; one that the folder holds goes on.

    Args:
        asked: The config and its overrides.
        say: Receives lines for people.
        home: The sweep's folder; named like the run, below `runs/`, if left out.
        url: Where the study is kept; a SQLite file in the folder if left out.
        trials: Number of trials, in place of the config's.
        jobs: Number of trials that run at the same time.

    Raises:
        FinetuneError: the folder holds something else, the study was begun with another config, or
            its database cannot be used.
    """
    _refuse_torchrun()
    sweep, name = asked.sweep, asked.config.run_name
    home = home or Path("runs") / name
    judged, space = judged_by(asked.config, sweep), SearchSpace(sweep.search)
    make_home(home, name)
    storage = Storage(url or f"sqlite:///{home / 'study.db'}")
    study = storage.open(name, judged.direction)
    with storage.locked(name), told_of_storage():
        _refuse_other_config(study, digest_of_config(asked.config, judged), home)
    # Not part of what the study was begun with: it may change between two commands.
    study.pruner = pruner_of(sweep)
    wanted = trials or sweep.trials or (None if sweep.sampler == "grid" else _TRIALS)
    proposals = Proposals(space, judged, sweep.sampler, asked.config.seed)
    claims = Claims(storage, study, proposals, wanted)
    number = "all combinations" if wanted is None else f"{wanted} trials"
    say(f"sweep: {home}, {number} by {sweep.sampler}, {judged.direction} {judged.metric}")
    return Sweeping(asked, claims, judged, home, _environment(jobs, say), jobs, say)


def _refuse_torchrun() -> None:
    """Raise if torchrun has started this process: trials of several would take each other for one.

    Raises:
        FinetuneError: it has, with others.
    """
    several = all(os.environ.get(name) for name in _OF_TORCHRUN)
    if several and os.environ["WORLD_SIZE"] != "1":
        raise FinetuneError(
            "torchrun has started several processes, and a sweep starts its own",
            hint="leave torchrun out; --jobs runs several trials at the same time",
        )


def _environment(jobs: int, say: Say) -> dict[str, str]:
    """Return the variables of each trial: they share the cores, unless the user has shared them."""
    if jobs == 1 or _THREADS in os.environ:
        return {}
    threads = max(1, usable_cores() // jobs)
    say(f"threads: {threads} for each of {jobs} trials at a time; {_THREADS} sets another number")
    return {_THREADS: str(threads)}


def _refuse_other_config(study: optuna.Study, digest: str, home: Path) -> None:
    """Raise if a study was begun with another config or search; note the config in a new one.

    Raises:
        FinetuneError: it was: its trials could not be compared with new ones.
    """
    begun_with = study.user_attrs.get("config")
    if begun_with is None:
        study.set_user_attr("config", digest)
    elif begun_with != digest:
        raise FinetuneError(
            f"the study {study.study_name!r} was begun with another config or search",
            where=str(home),
            hint="--dir names another folder for a new sweep, -o name=... another study in a "
            "shared database; trials, sampler and pruner may change",
        )
