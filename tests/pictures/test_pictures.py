"""Pictures hold together for any data, say what they leave out, and become pixels or SVG."""

import xml.etree.ElementTree as ET
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from finetune.pictures.beside_targets import draw_beside_targets
from finetune.pictures.calibration import bins_of, draw_calibration
from finetune.pictures.class_scores import draw_class_scores, scores_of
from finetune.pictures.confusion import draw_confusion, order_by_confusion
from finetune.pictures.drawing import (
    DARK,
    LIGHT,
    Label,
    Photo,
    as_pixels,
    as_svg,
    drawn,
    fitting,
    text_width,
)
from finetune.pictures.movement import draw_movement
from finetune.pictures.shown_samples import ShownSample, colours_of_classes, draw_samples

NAN = float("nan")
STRANGE = ["中文类别", "שלום", "x" * 200, "</svg><script>alert(1)</script>", "a\nb\x1b[31m", ""]


def counts_of(classes, samples=2000):
    draw = np.random.default_rng(0)
    true = draw.integers(0, classes, samples)
    said = np.where(draw.random(samples) < 0.8, true, draw.integers(0, classes, samples))
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (true, said), 1)
    return counts


def image(size):
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def names(count):
    return [STRANGE[n] if n < len(STRANGE) else f"class {n}" for n in range(count)]


SAMPLES = [
    ShownSample(name, name, "loss nan", pixels=[image((8, 8))] * (n % 3 + 1))
    for n, name in enumerate(STRANGE)
]
TEXTS = [
    ShownSample(name, name, "loss 1", words=[name, "word"] * 40, marks=[name, None] * 40)
    for name in STRANGE
]
PICTURES = {
    "confusion": lambda: draw_confusion(counts_of(2), names(2)),
    "confusion of 20": lambda: draw_confusion(counts_of(20), names(20)),
    "confusion of 1000": lambda: draw_confusion(counts_of(1000), names(1000)),
    "confusion of no sample": lambda: draw_confusion(np.zeros((3, 3), int), names(3)),
    "scores": lambda: draw_class_scores(*scores_of(counts_of(1000)), names(1000)),
    "scores of no sample": lambda: draw_class_scores(*scores_of(np.zeros((6, 6))), names(6)),
    "calibration": lambda: draw_calibration(bins_of(np.array([0.0, 0.5, 1.0, NAN]), np.ones(4))),
    "calibration of none": lambda: draw_calibration(bins_of(np.array([]), np.array([]))),
    "numbers": lambda: draw_beside_targets(np.arange(5000.0), np.arange(5000.0)[::-1], STRANGE[0]),
    "numbers, none finite": lambda: draw_beside_targets(np.array([NAN]), np.array([1.0])),
    "numbers, huge": lambda: draw_beside_targets(np.array([-1e308, 1e308]), np.array([1e308, 0])),
    "numbers, all equal": lambda: draw_beside_targets(np.zeros(3), np.zeros(3)),
    "movement": lambda: draw_movement({f"{name} {n}": n for n, name in enumerate(names(60))}),
    "images": lambda: draw_samples(SAMPLES, STRANGE[2]),
    "texts": lambda: draw_samples(TEXTS, STRANGE[3]),
    "no sample": lambda: draw_samples([], "none"),
}


@pytest.fixture(params=PICTURES.values(), ids=PICTURES)
def picture(request):
    return request.param()


def test_its_file_shows_its_pixels_and_every_colour_of_a_photo(picture):
    finished = drawn(picture)
    shown = np.asarray(Image.open(BytesIO(finished.png)).convert("RGB")).astype(int)
    np.testing.assert_array_equal(finished.pixels, as_pixels(picture))
    # Without a photo the edges of letters move by a shade, as a palette has 256 colours.
    has_photo = any(isinstance(shape, Photo) for shape in picture.shapes)
    assert abs(shown - finished.pixels).max() <= (0 if has_photo else 24)


def test_it_becomes_pixels_in_both_themes_with_something_on_the_paper(picture):
    light, dark = as_pixels(picture, LIGHT), as_pixels(picture, DARK)
    assert light.shape == dark.shape == (picture.height, picture.width, 3)
    assert picture.width <= 850
    for pixels in (light, dark):
        # The corner is paper.
        assert (pixels != pixels[-1, -1]).any()
    assert (light != dark).any()


def test_it_becomes_svg_that_runs_nothing_and_asks_for_nothing(picture):
    text = as_svg(picture)
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}
    assert tags <= {"svg", "rect", "circle", "polyline", "text", "image"}
    assert "\x1b" not in text
    assert all(part.startswith("data:image/png") for part in text.split('href="')[1:])


def test_no_text_leaves_the_picture(picture):
    for shape in picture.shapes:
        if isinstance(shape, Label):
            shift = {"left": 0, "middle": 0.5, "right": 1}[shape.align]
            left = shape.x - shift * text_width(shape.text, shape.size)
            assert left >= -1, shape.text
            assert left + text_width(shape.text, shape.size) <= picture.width + 1, shape.text


def text_of(picture):
    return "\n".join(shape.text for shape in picture.shapes if isinstance(shape, Label))


def test_classes_that_are_confused_stand_side_by_side():
    counts = np.diag([10, 10, 10, 10])
    counts[0, 2] = counts[3, 1] = 5
    order = order_by_confusion(counts)
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == abs(order.index(3) - order.index(1)) == 1


def test_the_pairs_with_the_most_mistakes_are_named():
    counts = np.diag([10, 10, 10])
    counts[2, 0] = 7
    assert "7 times so as said" in text_of(draw_confusion(counts, ["said", "other", "so"]))
    assert "no sample is wrong" in text_of(draw_confusion(np.diag([1, 2]), ["a", "b"]))


def test_what_is_left_out_is_told():
    assert "the worst 25 of 1000" in text_of(PICTURES["scores"]())
    assert "2000 of 5000 samples drawn" in text_of(PICTURES["numbers"]())
    assert "1 of 1 predictions are not finite" in text_of(PICTURES["numbers, none finite"]())
    assert "the last 40 of 60 blocks" in text_of(PICTURES["movement"]())


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    counts = counts_of(7)
    pairs = np.indices(counts.shape).reshape(2, -1)
    true, said = np.repeat(pairs, counts.ravel(), axis=1)
    precision, recall, _, support = metrics.precision_recall_fscore_support(true, said)
    for own, theirs in zip(scores_of(counts), (precision, recall, support), strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_the_calibration_error_is_that_of_a_case_done_by_hand():
    # one bin: 0.84 said, half of it right; another: 0.25 said, none right
    bins = bins_of(np.array([0.83, 0.85, 0.25, 0.25]), np.array([True, False, False, False]))
    assert bins.error == pytest.approx((0.34 * 2 + 0.25 * 2) / 4)


def test_a_block_that_has_not_moved_has_no_bar():
    still = draw_movement({"a": 0.0})
    assert not [shape for shape in still.shapes if getattr(shape, "fill", None) == "trained"]
    assert "not moved" in text_of(still)


def test_neighbouring_classes_of_a_mask_have_colours_of_their_own():
    painted = colours_of_classes(np.array([[-1, *range(16)]]), 16)[0]
    assert len({tuple(pixel) for pixel in painted[2:9].tolist()}) == 7
    assert painted[0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
def test_a_cut_text_fits(text):
    for keeps_end in (False, True):
        assert text_width(fitting(text, 50, keeps_end=keeps_end)) <= 50


def test_words_without_a_mark_share_a_label_as_far_as_their_line_goes():
    words = ["one", "two", "three", "four"]
    plain = draw_samples([ShownSample("a", "b", words=words)], "most wrong")
    assert "one two three four" in [one.text for one in plain.shapes if isinstance(one, Label)]
    marked = draw_samples(
        [ShownSample("a", "b", words=words, marks=[None, "x", None, None])], "most wrong"
    )
    texts = [one.text for one in marked.shapes if isinstance(one, Label)]
    assert texts[-3:] == ["one", "two [x]", "three four"]
