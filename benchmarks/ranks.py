"""Count what the ranks of a run send each other in a step, and the least that DDP would send.

Two processes train small networks on this machine over gloo. Counted are the calls of
torch.distributed within a step and the bytes that a rank gives to them, and seconds of the
processor. DDP sends at least the bytes of the gradients of what trains, in one message.

Then a larger network trains by two processes of one thread each and, in turns, by one process of
two threads: the same samples a step on the same cores.

Run: `python benchmarks/ranks.py`.
"""

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import finetune
from finetune.config.run import RunConfig

_WIDTH, _STEPS = 256, 30
_LARGE_WIDTH, _LARGE_BATCH, _ROUNDS = 2048, 512, 3
_CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "head alone trains": (["body*", "norm*", "middle*"], {}),
    "all but the norm": (["norm*"], {}),
    "all": ([], {}),
    "all, sync_norm": ([], {"sync_norm": True}),
}
_CALLS = ("all_reduce", "all_gather", "broadcast")


def config_of(frozen: list[str], train: dict[str, Any], width: int) -> RunConfig:
    """Return a run of so many steps, without evaluation."""
    layers = [
        {"name": "body", "type": "Linear", "out_features": width},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "middle", "type": "Linear", "out_features": width},
        {"name": "head", "type": "Linear", "out_features": 8},
    ]
    settings = {"steps": _STEPS, "batch_size": 64, "log_every": _STEPS} | train
    return RunConfig.model_validate(
        {
            "model": {"layers": layers},
            "data": {"source": {"type": "random", "samples": 512, "features": 64, "targets": 8}},
            "task": {"type": "regression"},
            "optimizer": {"type": "SGD", "lr": 0.01},
            "freeze": {"phases": [{"name": "all", "freeze": frozen}]},
            "train": settings,
            "tracking": {"to": [], "report": False},
            "cache": "off",
        }
    )


def counted(config: RunConfig, folder: Path) -> dict[str, float]:
    """Train in this rank; return what one step sends, and what it costs."""
    calls: Counter[str] = Counter()
    dist = torch.distributed

    def counting(name: str) -> Any:
        call = getattr(dist, name)

        def count(*arguments: Any, **more: Any) -> Any:
            # all_gather takes the places of the answers first.
            given = arguments[1] if name == "all_gather" else arguments[0]
            calls.update(messages=1, bytes=given.numel() * given.element_size())
            return call(*arguments, **more)

        return count

    for name in _CALLS:
        setattr(dist, name, counting(name))
    trainer = finetune.build_trainer(config, folder)
    step, found, walls = trainer.step, Counter[str](), []

    def measured(window: Any) -> Any:
        before, began, wall = calls.copy(), time.process_time(), time.perf_counter()
        stats = step(window)
        found.update({name: calls[name] - before[name] for name in calls})
        found["cpu_us"] += round((time.process_time() - began) * 1e6)
        walls.append((time.perf_counter() - wall) * 1e6)
        return stats

    trainer.step = measured
    trainer.fit(quiet=True)
    trained = [one for one in trainer.model.parameters() if one.requires_grad]
    least = float(sum(one.numel() * one.element_size() for one in trained))
    means = {name: value / _STEPS for name, value in found.items()}
    return means | {"gradients": least, "us": statistics.median(walls)}


def of_rank(rank: int, world: int, port: int, config: RunConfig, folder: Path) -> int:
    """Start a fork that is one rank; return its process number."""
    if pid := os.fork():
        return pid
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    if world > 1:
        os.environ |= {name: str(value) for name, value in told.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    code = 1
    try:
        found = counted(config, folder / "run")
        (folder / f"rank{rank}.json").write_text(json.dumps(found))
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def figures(
    world: int, frozen: list[str], train: dict[str, Any], width: int = _WIDTH
) -> dict[str, float]:
    """Return the figures of rank 0 of a run."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = config_of(frozen, train, width)
        ranks = [of_rank(rank, world, port, config, Path(folder)) for rank in range(world)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in ranks]
        if any(codes):
            sys.exit(f"ranks ended with {codes}")
        return dict(json.loads(Path(folder, "rank0.json").read_text()))


def main() -> None:
    """Print a line for each case, and one for each round of two processes beside one."""
    torch.set_num_threads(1)
    print("case                 messages  bytes a step  gradients  ratio  CPU us  alone")
    for name, (frozen, train) in _CASES.items():
        two, one = figures(2, frozen, train), figures(1, frozen, train)
        print(
            f"{name:20} {two['messages']:8.1f} {two['bytes']:13,.0f} {two['gradients']:10,.0f} "
            f"{two['bytes'] / two['gradients']:6.3f} {two['cpu_us']:7.0f} {one['cpu_us']:6.0f}",
            flush=True,
        )
    ratios = []
    print("two processes of a thread each / one of two threads, a step of rank 0")
    for _ in range(_ROUNDS):
        found = []
        for world in (2, 1):
            torch.set_num_threads(2 // world)
            found.append(figures(world, ["norm*"], {"batch_size": _LARGE_BATCH}, _LARGE_WIDTH))
        two, one = found
        ratios.append(two["us"] / one["us"])
        cpu = 2 * two["cpu_us"] / one["cpu_us"]
        print(
            f"{two['us'] / 1e3:.1f} / {one['us'] / 1e3:.1f} ms = {ratios[-1]:.2f}; "
            f"CPU of all {cpu:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
