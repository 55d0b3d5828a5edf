"""Samples that count how often they are read, for sources of `type: import`."""

import numpy as np

READS = []
"""The number of each sample that was read in this process."""


class Rows:
    """Features and targets drawn at random, one sample after the other."""

    def __init__(self, samples):
        draw = np.random.default_rng(0)
        self.features = draw.normal(size=(samples, 4)).astype(np.float32)
        self.targets = draw.normal(size=(samples, 3)).astype(np.float32)

    def __len__(self):
        return len(self.features)

    def __getitem__(self, number):
        READS.append(number)
        return {"features": self.features[number], "target": self.targets[number]}
