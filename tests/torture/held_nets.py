"""A network that holds a prediction when a part of it is kept, for configs of `type: import`."""

import os
import time
from pathlib import Path

from torch import nn


class Held(nn.Module):
    """Hands on what it gets. Where the environment names a folder, it takes its time, and for ever
    as soon as a journal of predictions lies there."""

    def forward(self, features):
        if folder := os.environ.get("HELD_AT"):
            time.sleep(0.3)
            while list(Path(folder).glob(".finetune-predict-*.json")):
                time.sleep(0.3)
        return features


def held():
    return Held()
