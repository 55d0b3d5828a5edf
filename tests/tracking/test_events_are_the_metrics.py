"""A whole run's event files, read by TensorBoard itself, hold what `metrics.jsonl` holds."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.tracking.board import shown_tag
from finetune.tracking.tracker import OF_PHASES, PLACE, Tracker

STEPS = 1_000
MOST_BYTES = 5 * 10**6 // 10
"""Of 10,000 steps 5 MB, so of these a tenth; the pictures at the end count in full."""


class Breaks(Tracker):
    """Ends a run as a fault of another library would, in the middle of two checkpoints."""

    def scalars(self, step, values):
        if step >= 555:
            raise RuntimeError("broken")


def curves_of(run):
    """Return the points of `metrics.jsonl` by TensorBoard's tag, as single precision."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = entry.pop("step")
        for tag, value in entry.items():
            if not isinstance(value, str) and tag not in (*PLACE, *OF_PHASES):
                found.setdefault(shown_tag(tag), []).append((step, np.float32(value).item()))
    return found


@pytest.mark.slow
def test_all_points_of_a_resumed_run_are_equal_and_files_are_small(
    small_config, small_run, tmp_path
):
    """The resumed run is one line, whose steps all stand there once."""
    from finetune.train.wire import build_trainer

    train = {"steps": STEPS, "batch_size": 8, "evaluate_every": {"steps": 50}}
    with pytest.raises(RuntimeError, match="broken"):
        build_trainer(small_config(train=train), tmp_path / "run", tracker=Breaks()).fit()
    small_run(train=train).fit()
    folder = tmp_path / "run" / "tensorboard"
    files = list(folder.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    shown = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert shown == curves_of(tmp_path / "run")
    steps = [step for step, _ in shown["train/loss"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
