"""Several trackers are as good as one."""

import pytest

from finetune.pictures.drawing import Picture, drawn
from finetune.tracking.json_lines import JsonLines, read_metrics
from finetune.tracking.tracker import Tracker, Trackers

DRAWN = drawn(Picture(3, 2, [], "nothing"))


class Recorder(Tracker):
    """Keeps what it receives."""

    def __init__(self):
        self.received = []

    def begin(self, step, total_steps, *, lines=None):
        self.received.append(("begin", step, total_steps, lines))

    def scalars(self, step, values):
        self.received.append(("scalars", step, dict(values)))

    def text(self, tag, text, step):
        self.received.append(("text", tag, text, step))

    def image(self, tag, image, step):
        self.received.append(("image", tag, image.pixels.shape, step))

    def hparams(self, values, metrics):
        self.received.append(("hparams", dict(values), dict(metrics)))

    def message(self, text):
        self.received.append(("message", text))

    def close(self):
        self.received.append(("close",))


def test_each_tracker_receives_everything_in_order():
    recorders = [Recorder(), Recorder()]
    trackers = Trackers(recorders)
    trackers.begin(0, 10, lines=0)
    trackers.scalars(1, {"train/loss": 0.5})
    trackers.text("note", "text", 1)
    trackers.image("picture", DRAWN, 1)
    trackers.message("hello")
    trackers.hparams({"lr": 1.0}, {"test/accuracy": 0.5})
    trackers.close()
    for recorder in recorders:
        assert recorder.received == [
            ("begin", 0, 10, 0),
            ("scalars", 1, {"train/loss": 0.5}),
            ("text", "note", "text", 1),
            ("image", "picture", (2, 3, 3), 1),
            ("message", "hello"),
            ("hparams", {"lr": 1.0}, {"test/accuracy": 0.5}),
            ("close",),
        ]


def test_all_are_closed_even_if_one_of_them_fails():
    class Failing(Tracker):
        def close(self):
            raise RuntimeError("disk full")

    before, after = Recorder(), Recorder()
    with pytest.raises(RuntimeError, match="disk full"):
        Trackers([before, Failing(), after]).close()
    assert before.received == after.received == [("close",)]


def test_a_tracker_passes_over_what_it_has_no_use_for(tmp_path):
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.scalars(1, {"train/loss": 0.5})
    tracker.text("note", "text", 1)
    tracker.image("picture", DRAWN, 1)
    tracker.message("hello")
    tracker.hparams({"lr": 1.0}, {"test/accuracy": 0.5})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
