"""A process with little memory and a larger store: `short_of_memory.py CASE DIR DISK_GB`.

What it may take of its own is counted by the system (`RLIMIT_DATA`), or what it may map of files
too (`RLIMIT_AS`). Each case checks itself.
"""

import re
import resource
import sys
from pathlib import Path

import torch

from finetune.store.store import RowSpec, Store

SPECS = {"x": RowSpec((1 << 18,), "float32")}
"""A row is 1 MiB."""
TOKENS = {"x": RowSpec((1, 1 << 18), "float32", ragged=True)}
"""A token is 1 MiB, and a row is laid out for one."""


def leave_mib(count, *, with_maps=False):
    """Let this process take so many MiB more, and no more."""
    kind, name = (resource.RLIMIT_AS, "Size") if with_maps else (resource.RLIMIT_DATA, "Data")
    own = int(re.search(rf"Vm{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    limit = (own << 10) + (count << 20)
    resource.setrlimit(kind, (limit, limit))


def opened(folder, specs, num_rows):
    return Store.open(folder, "k", specs, num_rows, memory_gb=1, disk_gb=int(sys.argv[3]))


def write_eights(store):
    """Write rows of 8 MiB each, no token of which is the same."""
    values = torch.arange(8.0)[:, None].expand(1, 8, 1 << 18).contiguous()
    for row in range(16):
        store.write(torch.tensor([row]), {"x": values + 8 * row}, torch.tensor([8]))


def opens(folder):
    leave_mib(64)
    store, value = opened(folder, SPECS, 256), torch.randn(1, 1 << 18)
    store.write(torch.tensor([5]), {"x": value})
    assert torch.equal(store.read(torch.tensor([5]))["x"], value)


def grows(folder):
    store = opened(folder, TOKENS, 16)
    leave_mib(64)
    write_eights(store)
    for row in range(16):
        first = store.read(torch.tensor([row]))["x"][0, :, 0]
        assert first.tolist() == list(range(8 * row, 8 * row + 8))


def examines(folder):
    """Rows are compared with their checksums in portions that memory holds."""
    rows = torch.arange(60)
    store = opened(folder, SPECS, 60)
    for row in rows[:, None]:
        store.write(row, {"x": row.float().expand(1, 1 << 18)})
    leave_mib(90)
    if int(sys.argv[3]):
        store.close()
        store = opened(folder, SPECS, 60)
    assert store.has(rows).all()
    assert store.read(torch.tensor([7]))["x"].eq(7).all()


def maps(folder):
    """The file of rows is larger than all that this process may map."""
    leave_mib(64, with_maps=True)
    rows, values = torch.tensor([5, 9, 6, 255]), torch.randn(4, 1 << 18)
    for _ in range(2):
        store = opened(folder, SPECS, 256)
        store.write(rows, {"x": values})
        assert torch.equal(store.read(rows)["x"], values)
        store.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
