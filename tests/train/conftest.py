"""Runs of several processes, each a fork of one that has loaded finetune."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TORTURE = Path(__file__).parents[1] / "torture"


@pytest.fixture(scope="session")
def forks():
    """A process that has loaded finetune; its forks are the ranks of all runs of this folder."""
    places = [str(TORTURE), str(Path(__file__).parent)]
    places += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    program = [sys.executable, TORTURE / "forked_ranks.py"]
    with subprocess.Popen(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def ranks(forks, tmp_path):
    """Run the command in so many ranks; return their exit codes and what they wrote."""

    def run(world, *arguments, most_bytes=None, **environment):
        job = {"world": world, "arguments": ["train", *map(str, arguments)]}
        job |= {"folder": str(tmp_path), "environment": environment, "most_bytes": most_bytes}
        forks.stdin.write(json.dumps(job) + "\n")
        forks.stdin.flush()
        done = json.loads(forks.stdout.readline())
        return done["codes"], done["told"]

    return run


def environment(**more):
    places = os.pathsep.join([str(TORTURE), str(Path(__file__).parent), *sys.path[:0]])
    path = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([places, path]).strip(os.pathsep), **more}


@pytest.fixture
def two_ranks(tmp_path):
    """Start two processes as torchrun does; those still alive are killed when the test is over."""
    processes = []

    def start(*arguments, program=("-m", "finetune", "train")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank in ("0", "1"):
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **where}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *program, *map(str, arguments)],
                    env=environment(**told),
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                )
            )
        return processes[-2:]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def drawn_images(tmp_path):
    """Thirty-two images of two classes, below `images`."""
    draw, paths = np.random.default_rng(0), []
    for number in range(32):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).save(path)
        paths.append(path)
    return paths
