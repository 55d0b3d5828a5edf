"""Settings for the whole test run, made before any library reads them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The networks of the tests are small: more threads would spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
