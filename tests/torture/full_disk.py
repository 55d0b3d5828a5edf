"""Runs a verb of `finetune` in this process while no file may grow beyond a size.

`full_disk.py BYTES VERB ...`: the system refuses to write beyond it, as it does on a full disk.
"""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from finetune.cli import main

limit = int(sys.argv[1])
sys.argv = ["finetune", *sys.argv[2:]]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
main()
