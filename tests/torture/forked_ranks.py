"""Run `finetune` in several processes at once, each a fork of one that has loaded it.

Reads jobs as JSON lines: {"world": 2, "arguments": [...], "folder": "...", "environment": {...}}.
With "most_bytes" no file of rank 0 may grow beyond it, as on a full disk. Answers each by a line
with the exit codes of the ranks and what they wrote on standard error. torch is loaded once for all
of them, and never run in this process.
"""

import json
import os
import resource
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

import torchmetrics  # noqa: F401 - loaded here rather than in each fork

import finetune.cli.running
import finetune.train.wire  # noqa: F401

_LIMIT_S = 360
"""Seconds after which a rank that hangs is ended by a signal."""


def rank_started(job: dict, rank: int, port: int) -> int:
    """Start one rank as torchrun would; return its process number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.alarm(_LIMIT_S)
        os.chdir(job["folder"])
        written = os.open(f"told.{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(written, 1)
        os.dup2(written, 2)
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"]}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        alone = job["world"] == 1
        os.environ.update({} if alone else {name: str(value) for name, value in told.items()})
        os.environ.update(job["environment"])
        if rank == 0 and job["most_bytes"]:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], most))
        sys.argv = ["finetune", *job["arguments"]]
        runpy.run_module("finetune", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends with it
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def codes_of(processes: list[int]) -> list[int]:
    """Wait for ranks; kill those that are stopped once another has ended: they never would."""
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    while len(codes) < len(processes):
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(pid)
        else:
            codes[pid] = os.waitstatus_to_exitcode(status)
        for other in stopped - codes.keys() if codes else ():
            os.kill(other, signal.SIGKILL)
    return [codes[process] for process in processes]


def done(job: dict) -> dict:
    """Run all ranks of a job to their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(job["world"])
    processes = [rank_started(job, rank, port) for rank in ranks]
    codes = codes_of(processes)
    told = [Path(job["folder"], f"told.{rank}").read_text() for rank in ranks]
    return {"codes": codes, "told": told}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(done(json.loads(line))), flush=True)
