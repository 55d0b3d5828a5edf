"""Pictures of what the network gets wrong: drawn of each form of target, from what is evaluated."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.config.loader import load_config
from finetune.data.batches import Batch
from finetune.data.targets.listed_targets import KNOWN
from finetune.pictures.drawing import Label
from finetune.tasks.views import View
from finetune.tracking.board import shown_tag
from finetune.train.looks.looking import as_image
from finetune.train.looks.new_seen import new_seen
from finetune.train.looks.seen import Inputs
from finetune.train.looks.seen_later import SeenLater
from finetune.train.looks.seen_tasks import SeenTasks
from finetune.train.wire import build_trainer

DIGITS = """
model: {layers: [{name: flatten, type: Flatten}, {name: mid, type: Linear, out_features: 16},
                 {name: head, type: Linear, out_features: classes}]}
data: {source: {type: sklearn, name: digits}, split: {validation: 0.2, test: 0.1}}
task: {type: classification, metrics: [accuracy]}
optimizer: {type: SGD, lr: 0.02}
train: {epochs: 2, batch_size: 64, log_every: 1}
freeze: {phases: [{name: head, train: ["head"], until: {epochs: 1}}, {name: all, freeze: []}]}
"""


def run(folder, *overrides, text=DIGITS):
    (folder / "c.yaml").write_text(text)
    build_trainer(load_config(folder / "c.yaml", overrides), folder / "run").fit(quiet=True)
    guidance = {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    events = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance=guidance).Reload()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return events, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("digits"))


def test_event_files_and_metrics_have_the_same_figures(digits):
    events, lines = digits
    of_place = {"step", "epoch", "phase", "weights_step", "non_finite"}
    for tag in {tag for line in lines for tag in line} - of_place:
        own = [(line["step"], np.float32(line[tag])) for line in lines if tag in line]
        shown = [(each.step, np.float32(each.value)) for each in events.Scalars(shown_tag(tag))]
        if tag in ("freeze/phase", "freeze/trained_parameters"):
            # They are repeated, so that they are drawn as steps.
            assert set(own) <= set(shown)
        else:
            assert shown == own, tag


def test_pictures_and_curves_of_the_weights_in_use_are_there_and_not_blank(digits):
    events, _ = digits
    pictures = ["confusion", "classes", "calibration", "most_wrong", "least_certain"]
    of_freezing = {"what_is_frozen/map", "what_is_frozen/moved"}
    assert set(events.Tags()["images"]) == {f"validation/{p}" for p in pictures} | of_freezing
    for tag in events.Tags()["images"]:
        image = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))
        pixels = np.asarray(image.convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3, tag
    curves = {f"validation/{n}" for n in range(10)}
    assert curves <= set(events.Tags()["tensors"])
    assert events.Tags()["histograms"] == []


def test_they_can_be_drawn_of_every_evaluation_with_histograms_of_what_trains(tmp_path):
    events, _ = run(tmp_path, "tracking.pictures_every.epochs=1", "tracking.histograms=true")
    steps = [image.step for image in events.Images("validation/confusion")]
    assert len(steps) == 2
    assert [each.step for each in events.Histograms("weights/mid")] == steps[1:]
    assert [each.step for each in events.Histograms("weights/head")] == steps


def test_none_are_drawn_if_nobody_wants_them(tmp_path):
    events, _ = run(tmp_path, "tracking.pictures_every=never")
    assert events.Tags()["images"] == ["what_is_frozen/map"]


def test_how_far_blocks_moved_is_drawn_without_validation_samples_too(tmp_path):
    events, _ = run(tmp_path, "data.split={test: 0.1}")
    assert events.Tags()["images"] == ["what_is_frozen/map", "what_is_frozen/moved"]


def test_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch, capsys):
    def odd(*_):
        raise OverflowError("too large to be drawn")

    monkeypatch.setattr("finetune.train.looks.seen_classes.draw_confusion", odd)
    (tmp_path / "c.yaml").write_text(DIGITS)
    trainer = build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run")
    assert trainer.fit().step == trainer.timeline.total_steps
    told = capsys.readouterr().err
    assert told.count("no more pictures of the validation samples: OverflowError: too large") == 1


def test_without_a_tracker_there_are_no_event_files(tmp_path):
    (tmp_path / "c.yaml").write_text(DIGITS)
    build_trainer(load_config(tmp_path / "c.yaml", ["tracking=[]"]), tmp_path / "run").fit(
        quiet=True
    )
    assert not list((tmp_path / "run").glob("tensorboard/events*"))


def batch(target, first=0):
    return Batch({}, target, torch.arange(first, first + len(target)))


SHOW = Inputs((), ("a", "word"))
IMAGE = Inputs((np.zeros((4, 6, 3), np.uint8),), ())
CASES = {
    "class": (torch.randn(6, 3), torch.arange(6) % 3, SHOW, {"confusion", "classes"}),
    "labels": (torch.randn(6, 3), torch.ones(6, 3), SHOW, {"labels", "most_wrong"}),
    "numbers": (torch.randn(6, 2), torch.randn(6, 2), SHOW, {"targets/x", "targets/y"}),
    "tags": (torch.randn(6, 4, 3), torch.randint(3, (6, 4)), SHOW, {"confusion", "most_wrong"}),
    "mask": (torch.randn(6, 3, 4, 6), torch.randint(3, (6, 4, 6)), IMAGE, {"confusion"}),
}


@pytest.mark.parametrize("is_finite", [True, False])
@pytest.mark.parametrize("learns", CASES)
def test_every_form_of_target_has_pictures_also_of_a_network_that_diverged(learns, is_finite):
    outputs, target, inputs, names = CASES[learns]
    seen = new_seen(learns, ["a", "b", "c"], ["x", "y"])
    for first in (0, 6):
        seen.add(outputs if is_finite else outputs * torch.nan, batch(target, first))
    pictures = seen.pictures(dict.fromkeys(seen.shown(), inputs))
    assert names <= pictures.keys()


def test_the_most_wrong_sample_comes_first():
    seen = new_seen("class", ["a", "b"], [])
    seen.add(torch.tensor([[0.0, 1], [0, 9], [9, 0]]), batch(torch.zeros(3, dtype=torch.int64)))
    assert next(iter(seen.shown())) == 1


def test_wrong_words_are_marked_where_they_stand():
    seen = new_seen("tags", ["O", "PER"], [])
    target = torch.tensor([[-100, 0, -100, 1, 1], [-100, 0, 0, -100, -100]])
    said = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    words = torch.tensor([[-1, 0, -1, 1, 2], [-1, 0, 1, -1, -1]])
    columns = {"words of text": words}
    outputs = torch.nn.functional.one_hot(said, 2).float()
    seen.add(outputs, Batch({}, target, torch.tensor([4, 9]), columns=columns))
    assert list(seen.shown()) == [4]
    pictures = seen.pictures({4: Inputs((), ("she", "met", "Ada"))})
    texts = [shape.text for shape in pictures["most_wrong"].shapes if isinstance(shape, Label)]
    assert "she [PER, not O]" in texts
    assert "Ada [O, not PER]" in texts
    assert "met" in texts
    assert {"said PER of word 1", "is O", "sample 4: 2 of 3 words wrong"} <= set(texts)
    assert pictures["confusion"].title == "Confusion matrix: 3 of 5 samples right"


def test_each_task_of_a_list_has_pictures_of_the_samples_with_its_target():
    kind = View("kind", "a", "kind")
    size = View("size", "b", "size")
    tags = View("tags", "c", "tags")
    views = {kind: new_seen("class", ["x", "y"], []), size: new_seen("numbers", [], ["size"])}
    seen = SeenTasks(views | {tags: new_seen("tags", ["x", "y"], [])})
    columns = {
        "kind": torch.tensor([0, 1, 1]),
        "size": torch.tensor([1.0, 2.0, 3.0]),
        KNOWN + "size": torch.tensor([True, False, True]),
        "tags": torch.zeros(3, 4, dtype=torch.int64),
        KNOWN + "tags": torch.zeros(3, dtype=torch.bool),
    }
    outputs = {"a": torch.tensor([[2.0, 0], [2, 0], [0, 2]]), "b": torch.zeros(3, 1)}
    outputs["c"] = torch.zeros(3, 4, 2)
    seen.add(outputs, Batch({}, None, torch.arange(3), columns=columns))
    pictures = seen.pictures(dict.fromkeys(seen.shown(), SHOW))
    assert {"kind/confusion", "kind/most_wrong", "size/targets", "size/most_wrong"} <= set(pictures)
    assert pictures["size/targets"].title == "size: Predictions beside targets of 2 samples"
    assert not any(name.startswith("tags") for name in pictures)  # no sample has its target
    assert [curve.name for curve in seen.curves()] == ["kind/y"]


@pytest.mark.parametrize("most", [0, 20, 1000], ids=["none wait", "some wait", "all wait"])
def test_batches_that_waited_give_the_pictures_of_those_taken_at_once(most):
    names = ["a", "b", "c"]
    at_once, later = new_seen("class", names, ()), new_seen("class", names, ())
    waiting = SeenLater(later, most_waiting=most)
    for first in range(0, 20, 4):
        outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(first))
        one = batch(torch.tensor([0, 1, 2, 0]), first)
        at_once.add(outputs, one)
        waiting.keep(outputs, one)
    assert waiting.shown() == at_once.shown()
    show = {number: Inputs((), (f"word {number}",)) for number in at_once.shown()}
    assert repr(waiting.pictures(show)) == repr(at_once.pictures(show))
    for mine, theirs in zip(waiting.curves(), at_once.curves(), strict=True):
        assert mine.name == theirs.name
        np.testing.assert_array_equal(mine.score, theirs.score)


def test_a_batch_that_waits_keeps_no_inputs_and_is_not_taken_before_it_is_asked_for():
    taken = []

    class Recorder:
        def add(self, outputs, batch):
            taken.append(batch)

        def shown(self):
            return []

    waiting = SeenLater(Recorder())
    waiting.keep(torch.zeros(2, 3), batch(torch.tensor([0, 1])))
    assert taken == []
    waiting.shown()
    assert [one.inputs for one in taken] == [{}]


def test_outputs_of_another_form_are_refused_not_drawn():
    for learns in CASES:
        with pytest.raises(ValueError, match=r".+"):
            new_seen(learns, ["a", "b"], []).add(torch.zeros(4, 7), batch(torch.zeros(4).long()))


@pytest.mark.parametrize(
    ("shape", "is_image"),
    [((8, 8), True), ((1, 8, 8), True), ((3, 5, 8), True), ((7, 5, 8), False), ((9,), False)],
)
def test_an_input_is_an_image_if_it_can_be_one(shape, is_image):
    image = as_image(torch.randn(shape))
    assert (image is not None) == is_image
    if image is not None:
        assert image.shape == (*shape[-2:], 3)
        assert (image.min(), image.max()) == (0, 255)
