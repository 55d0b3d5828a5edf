"""Segmentation: losses over pixels, metrics against second implementations, records of masks."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch.nn import functional as F
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.data.media.pixel_classes import IGNORED
from finetune.errors import FinetuneError, ModelError
from finetune.tasks.build_task import build_task
from finetune.tasks.mask_records import MaskRecord
from finetune.tasks.records import Asked
from finetune.tasks.task import add_up
from finetune.tasks.window_mean import WindowMean

CLASSES = ("sky", "road", "tree")
METRICS = ["mean_iou", "dice", "pixel_accuracy"]


def made(classes=CLASSES, **config):
    node = TypeAdapter(TaskConfig).validate_python(
        {"type": "segmentation", "classes": list(classes), **config}
    )
    return build_task(node, classes=classes, trust=(), device=torch.device("cpu"))


def masks(count, size=(6, 5), classes=3, seed=0, ignored=0.2):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (count, *size), generator=draw)
    target[torch.rand(target.shape, generator=draw) < ignored] = IGNORED
    return target


def logits(count, size=(6, 5), classes=3, seed=1):
    return torch.randn(count, classes, *size, generator=torch.Generator().manual_seed(seed))


def batch_of(target):
    return Batch({}, target, torch.arange(len(target)))


def mean_over_window(task, outputs, target, size):
    outputs = outputs.clone().requires_grad_()
    parts = list(torch.arange(len(target)).split(size))
    window = [batch_of(target[rows]) for rows in parts]
    mean, whole = WindowMean(task.losses, window), 0.0
    for rows, batch in zip(parts, window, strict=True):
        share = add_up(mean.shares(task.parts(outputs[rows], batch)))
        share.backward()
        whole += float(share.detach())
    return whole, outputs.grad


LOSSES = {
    "cross entropy": [{"type": "cross_entropy"}],
    "smoothed": [{"type": "cross_entropy", "label_smoothing": 0.1}],
    "weighted": [{"type": "cross_entropy", "class_weights": {"road": 3, "sky": 0.5}}],
    "dice": [{"type": "dice"}],
    "both": [{"type": "cross_entropy"}, {"type": "dice", "weight": 0.5}],
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("size", [(6, 5), (3, 3)], ids=["of one size", "resized"])
def test_a_window_has_the_same_loss_however_it_is_cut(losses, size):
    task, target, outputs = made(losses=losses), masks(7), logits(7, size)
    # Samples differ in their number of ignored pixels: a mean of means would be another one.
    target[0] = IGNORED
    target[1, :5] = IGNORED
    whole, gradient = mean_over_window(task, outputs, target, 7)
    for cut in (1, 3):
        again, other = mean_over_window(task, outputs, target, cut)
        assert again == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)


def test_cross_entropy_is_that_of_torch_over_the_pixels_with_a_class():
    target, outputs = masks(4), logits(4)
    found = made().loss(outputs, batch_of(target))
    expected = F.cross_entropy(outputs, target, ignore_index=IGNORED)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([0.5, 3.0, 1.0])
    weighted = made(losses=LOSSES["weighted"]).loss(outputs, batch_of(target))
    expected = F.cross_entropy(outputs, target, weights, ignore_index=IGNORED)
    torch.testing.assert_close(weighted, expected)


def test_balanced_weights_are_refused_since_nobody_counts_pixels():
    losses = {"type": "cross_entropy", "class_weights": "balanced"}
    with pytest.raises(FinetuneError, match="nobody has counted"):
        made(losses=losses)


def test_the_dice_loss_is_written_out_for_one_sample():
    target = torch.tensor([[[0, 1], [1, IGNORED]]])
    outputs = logits(1, (2, 2), 2)
    shares = outputs.softmax(1)[0].flatten(1)[:, :3]
    true = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    both = 2 * (shares * true).sum(1)
    expected = 1 - ((both + 1) / (shares.sum(1) + true.sum(1) + 1)).mean()
    task = made(("a", "b"), losses={"type": "dice"})
    torch.testing.assert_close(task.loss(outputs, batch_of(target)), expected)
    perfect = F.one_hot(target.clamp(0), 2).movedim(-1, 1).float() * 1000
    assert float(task.loss(perfect, batch_of(target))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_window_without_any_class_has_no_loss_and_moves_nothing(kind):
    task, target = made(losses=LOSSES[kind]), torch.full((3, 6, 5), IGNORED)
    whole, gradient = mean_over_window(task, logits(3), target, 2)
    assert whole == 0
    assert not gradient.any()


def test_one_logit_is_that_of_the_second_of_two_classes():
    target, one = masks(3, classes=2), logits(3, classes=1)
    task = made(("no", "yes"), metrics=METRICS)
    expected = F.binary_cross_entropy_with_logits(
        one[:, 0][target != IGNORED], target[target != IGNORED].float()
    )
    torch.testing.assert_close(task.loss(one, batch_of(target)), expected)
    assert torch.equal(task.read(one)[0].mask, (one[0, 0] > 0).long())


def test_outputs_of_torchvision_are_read_from_their_dict():
    target, outputs = masks(2), logits(2)
    task = made()
    assert torch.equal(
        task.loss({"out": outputs, "aux": outputs * 2}, batch_of(target)),
        task.loss(outputs, batch_of(target)),
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 3), r"a logit for each class and pixel \(B, C, H, W\) is needed"),
        (torch.zeros(2, 4, 6, 5), "3 classes need as many outputs"),
        (torch.zeros(2, 3, 1, 1), "gives one pixel"),
        ({"logits": torch.zeros(2, 3, 6, 5)}, "a logit for each class and pixel"),
    ],
    ids=["no pixels", "other classes", "one pixel", "another dict"],
)
def test_outputs_that_are_no_logits_of_pixels_are_refused(outputs, message):
    task = made(metrics=METRICS)
    for use in (task.loss, task.update_metrics):
        with pytest.raises(ModelError, match=message) as error:
            use(outputs, batch_of(masks(2)))
        if isinstance(outputs, torch.Tensor):
            assert "type: Conv2d, out_channels: classes" in error.value.hint


def figures(task, outputs, target, size=2):
    for rows in torch.arange(len(target)).split(size):
        task.update_metrics(outputs[rows], batch_of(target[rows]))
    left_out = {}
    return task.compute_metrics(left_out), left_out


def cases():
    """Random masks and predictions, with absent classes and many ignored pixels among them."""
    draw = np.random.default_rng(0)
    for seed in range(200):
        classes = int(draw.integers(2, 7))
        there = int(draw.integers(1, classes + 1))
        target = masks(3, (4, 4), there, seed, ignored=float(draw.choice([0, 0.3, 0.95])))
        outputs = logits(3, (4, 4), classes, seed + 1000)
        if seed % 5 == 0:
            outputs[:, -1] = -9
        yield classes, target, outputs


@pytest.mark.slow
def test_metrics_equal_those_of_scikit_learn_and_torchmetrics_on_200_random_cases():
    undefined = 0
    for classes, target, outputs in cases():
        task = made(tuple("abcdef"[:classes]), metrics=METRICS)
        found, left_out = figures(task, outputs, target)
        known = target != IGNORED
        true, said = target[known].numpy(), outputs.argmax(1)[known].numpy()
        if not len(true):
            undefined += 1
            assert left_out == dict.fromkeys(METRICS, "no pixel has a class")
            continue
        there = sorted({*true.tolist()})
        macro = {"labels": there, "average": "macro", "zero_division": 0}
        assert found["mean_iou"] == pytest.approx(jaccard_score(true, said, **macro), abs=1e-6)
        assert found["dice"] == pytest.approx(f1_score(true, said, **macro), abs=1e-6)
        assert found["pixel_accuracy"] == pytest.approx(accuracy_score(true, said), abs=1e-6)
        second = {"num_classes": classes, "ignore_index": IGNORED, "average": "none"}
        for name, metric in (
            ("mean_iou", MulticlassJaccardIndex(**second)),
            ("dice", MulticlassF1Score(**second)),
        ):
            theirs = metric(outputs, target)[there].mean()
            assert found[name] == pytest.approx(float(theirs), abs=1e-6)
    assert undefined < 20


def test_masks_without_any_class_leave_metrics_out_with_a_reason():
    task = made(metrics=METRICS)
    found, left_out = figures(task, logits(2), torch.full((2, 6, 5), IGNORED))
    assert found == {}
    assert left_out == dict.fromkeys(METRICS, "no pixel has a class")


def test_every_metric_improves_upwards():
    directions = made(metrics=METRICS).directions
    assert not any(directions.falls(f"validation/{name}") for name in METRICS)
    assert directions.main() == "validation/mean_iou"


@pytest.mark.parametrize("size", [(6, 5), (12, 10), (7, 9), (1, 3)])
def test_a_record_has_the_size_of_the_image_that_was_handed_in(size):
    outputs = logits(2)
    record = made().read(outputs, Asked(batch_of(masks(2)), lambda n: {}, lambda n: size))[1]
    assert record.mask.shape == size
    assert record.row() == {"shares": record.shares}
    assert sum(record.shares.values()) == pytest.approx(1)
    rows = (torch.arange(size[0]) + 0.5) * 6 / size[0]
    columns = (torch.arange(size[1]) + 0.5) * 5 / size[1]
    nearest = outputs[1].argmax(0)[rows.long()][:, columns.long()]
    assert torch.equal(record.mask, nearest)


def test_a_record_is_of_the_logits_that_metrics_see():
    """Logits of half the size are resized before the classes are taken, not after."""
    outputs = logits(2, (3, 4))
    batch = Batch({"image": torch.zeros(2, 3, 6, 8)}, None, torch.arange(2))
    mask = made().read(outputs, Asked(batch, lambda n: {}, lambda n: (6, 8)))[1].mask
    metric_sees = F.interpolate(outputs, size=(6, 8), mode="bilinear").argmax(1)
    assert torch.equal(mask, metric_sees[1])


@pytest.mark.parametrize("numbers", [(0, 1, 2), (0, 128, 255), (3, 700, 32767)])
def test_the_picture_of_a_record_holds_the_numbers_of_the_masks(numbers):
    mask = masks(1, ignored=0)[0]
    with Image.open(BytesIO(MaskRecord(mask, {}, numbers).picture())) as image:
        assert np.array_equal(np.asarray(image), torch.tensor(numbers)[mask].numpy())
        assert image.mode == ("P" if max(numbers) < 256 else "I;16")
        if image.mode == "P":
            assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"losses": {"type": "mse"}}, "loss 'mse' takes no masks"),
        ({"classes": ["a", "a"]}, "two classes are called 'a'"),
        ({"classes": ["a", "b"], "ignore_index": 1}, "ignore_index 1 is the number of class 'b'"),
        ({"classes": ["a"]}, "needs at least 2 of them"),
        ({"metrics": ["f1"]}, "needs one of 'mean_iou', 'dice', 'pixel_accuracy'"),
        ({"ignore_index": 40000}, "must be at most 32767"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(TaskConfig).validate_python({"type": "segmentation", **config})


def test_the_dice_loss_is_refused_where_targets_are_no_masks():
    node = TypeAdapter(TaskConfig).validate_python(
        {"type": "classification", "losses": {"type": "dice"}}
    )
    with pytest.raises(FinetuneError, match="'dice' is for task"):
        build_task(node, classes=CLASSES, trust=(), device=torch.device("cpu"))
