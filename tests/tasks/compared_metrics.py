"""Compare metrics of a task with a second implementation on 200 random cases."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.tasks.build_task import build_task

CASES = 200


def task_of(kind, metrics, classes=None, **more):
    node = TypeAdapter(TaskConfig).validate_python({"type": kind, "metrics": metrics, **more})
    names = None if classes is None else tuple(f"c{number}" for number in range(classes))
    return build_task(node, classes=names, trust=(), device=torch.device("cpu"), outputs=("a", "b"))


def measured(task, outputs, target):
    """Return the figures after two uneven batches, and why others are left out."""
    left_out = {}
    cut = 1 + len(target) // 3
    for part in (slice(0, cut), slice(cut, None)):
        if len(target[part]):
            batch = Batch({}, target[part], torch.arange(len(target[part])))
            task.update_metrics(outputs[part], batch)
    return task.compute_metrics(left_out), left_out


def compare(task, draw, references):
    """Compare each figure with its reference; return how often each was defined."""
    defined = dict.fromkeys(references, 0)
    for seed in range(CASES):
        outputs, target = draw(np.random.default_rng(seed))
        found, left_out = measured(task, torch.tensor(outputs), torch.tensor(target))
        assert found.keys() | left_out.keys() == set(references)
        for name, value in found.items():
            wish = references[name](outputs.astype(np.float64), target)
            assert value == pytest.approx(wish, rel=1e-4, abs=1e-5), (name, seed)
            defined[name] += 1
    return defined
