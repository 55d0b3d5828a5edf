"""A run that may take less than half the memory its store's rows take: `bounded_run.py DIR PREFIX`.

From the moment the network is built the process may take `_LEFT` MiB of memory of its own, as the
system counts it (`RLIMIT_DATA`: pages of mapped files are not among it), most of which a step
takes. It prints the digest of the weights it ends with, how many samples were answered, and what
was said.
"""

import json
import re
import resource
import sys
from pathlib import Path

import torch
from torch import nn

from finetune.activations import estimate
from finetune.config.run import Provenance, RunConfig
from finetune.freezing.proof import fingerprints
from finetune.train.wire import build_trainer

_LEFT = 110
"""MiB; the rows of 1797 digits take 225 MiB."""


def wide(classes: int) -> nn.Module:
    """Return a network whose frozen part makes 128 KiB of every digit."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32_768), nn.Tanh())
    return nn.Sequential(body, nn.Linear(32_768, classes))


def _own_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmData:\s+(\d+) kB", status)[1]) / 1024


def main(folder: Path, prefix: str) -> None:
    layer = {"name": "net", "type": "import", "path": "bounded_run:wide",
             "args": {"classes": "classes"}}  # fmt: skip
    config = RunConfig.model_validate(
        {
            "model": {"layers": [layer]},
            "data": {"source": {"type": "sklearn", "name": "digits"}},
            "task": {"type": "classification"},
            "freeze": ["net.0"],
            "optimizer": {"type": "SGD", "lr": 1e-3},
            "train": {"epochs": 3, "batch_size": 32},
            "cache": json.loads(prefix),
        }
    ).with_provenance(Provenance(trust=frozenset({"bounded_run"})), {})
    # however little it would save
    estimate._READ_BYTES_PER_S, estimate._TRYING_PASSES, estimate._LEAST_SHARE = 1e18, 0, 0.0
    trainer = build_trainer(config, folder)
    limit = round(_own_mib() + _LEFT) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    said = []
    trainer.reporter.tracker.message = said.append
    trainer.fit()
    answered = trainer.cache.statistics.answered
    ended = {"weights": fingerprints(trainer.model), "answered": answered, "said": said}
    print(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
