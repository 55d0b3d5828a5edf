"""Two nodes in network namespaces, and what a run does when the network between them is cut.

python two_nodes.py FOLDER [SECONDS]: needs root and `ip`. Trains a run unbroken on two nodes; then
cuts the network for so many seconds, and for good, in the midst of a run each time. Prints what the
nodes said, and whether the final bits are those of the unbroken run. Both nodes share FOLDER.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrun import Launch, command, digests, faults_of, num_lines, wait_until, write_config

_LINES = 6
"""After how many lines of its metrics a run is cut."""
_HANG_S = 60
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of the first node, which has the store of addresses, and of the second one."""


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Make two namespaces joined by a cable; yield the names of their ends of it."""
    ends = ("ftnode0", "ftnode1")
    for one in ends:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", one)  # of a run that was killed
    try:
        for one in ends:
            ip("netns", "add", one)
        ip("link", "add", ends[0], "netns", ends[0], "type", "veth",
           "peer", "name", ends[1], "netns", ends[1])  # fmt: skip
        for one, address in zip(ends, _ADDRESSES, strict=True):
            ip("-n", one, "addr", "add", f"{address}/24", "dev", one)
            ip("-n", one, "link", "set", one, "up")
            ip("-n", one, "link", "set", "lo", "up")
        yield ends
    finally:
        for one in ends:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", one)


def launched(node: int, end: str, folder: Path, run: Path, config: Path) -> Launch:
    """Start torchrun in a node, with one rank."""
    options = ["--nnodes=2", f"--node-rank={node}", f"--master-addr={_ADDRESSES[0]}",
               "--master-port=29511", f"--local-addr={_ADDRESSES[node]}"]  # fmt: skip
    words = [*command(run, config, options=options)]
    words[words.index("--nproc-per-node=2")] = "--nproc-per-node=1"
    inside = ["ip", "netns", "exec", end, *words]
    return Launch.of(folder, inside, GLOO_SOCKET_IFNAME=end)


def trained(folder: Path, run: Path, config: Path, cut_s: float | None) -> list[int | None]:
    """Train on two nodes and cut their network: 0 never, None for good; return the exit codes."""
    with two_nodes() as ends:
        nodes = [launched(n, end, folder, run, config) for n, end in enumerate(ends)]
        began = time.monotonic()
        try:
            if cut_s != 0:
                assert wait_until(lambda: num_lines(run) >= _LINES, nodes[0]), "ended too early"
                ip("-n", ends[0], "link", "set", ends[0], "down")
                began = time.monotonic()
                print(f"  cut at line {num_lines(run)}", flush=True)
                if cut_s is not None:
                    time.sleep(cut_s)
                    ip("-n", ends[0], "link", "set", ends[0], "up")
                    print(f"  joined again, at line {num_lines(run)}", flush=True)
            for node in nodes:
                wait_until(lambda: False, node)
            print(f"  both ended {time.monotonic() - began:.0f} s later", flush=True)
        finally:
            for node in nodes:
                node.end()
    for number, node in enumerate(nodes):
        words = ("finetune", "rank ", "another process", "stopped", "no progress", "goes on")
        lines = [one for one in node.log.read_text().splitlines() if any(w in one for w in words)]
        for line in dict.fromkeys(lines[-6:]):
            print(f"  node {number}: {line[:200]}", flush=True)
    return [node.process.returncode for node in nodes]


def main() -> None:
    """Show an unbroken run, a short cut, and a cut for good."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    seconds = float(sys.argv[2]) if sys.argv[2:] else 10.0
    config = write_config(folder, hang_timeout_s=_HANG_S)
    for name, cut_s in {"whole": 0.0, "short": seconds, "for good": None}.items():
        run = folder / name.replace(" ", "-")
        print(f"{name}: exit codes {trained(folder, run, config, cut_s)}", flush=True)
        if cut_s is None:
            print(f"  checkpoints that are wrong: {faults_of(run)}")
            print(f"  the same command: {trained(folder, run, config, 0.0)}")
        same = digests(run) == digests(folder / "whole")
        print(f"  bits of the unbroken run: {same}", flush=True)


if __name__ == "__main__":
    main()
