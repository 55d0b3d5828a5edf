"""Images in arrays: bytes become 0 to 1, and numbers of another type are not taken for others."""

import json

import numpy as np
import pytest

from finetune import load_predictor
from finetune.cli.plans import preview
from finetune.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4), np.uint8)
LAYERS = [{"type": "Flatten"}, {"type": "Linear", "out_features": "classes"}]
SECTIONS = {"model": {"layers": LAYERS}, "task": {"type": "classification"}}


@pytest.fixture
def save(tmp_path):
    """Save images and their labels as a file of arrays; return its source."""

    def save_(pixels, name="train"):
        np.savez(tmp_path / f"{name}.npz", image=pixels, label=np.arange(len(pixels)) % 2)
        return {"type": "arrays", "path": str(tmp_path / f"{name}.npz")}

    return save_


@pytest.fixture
def of_bytes(small_run, save, tmp_path):
    """A run that was trained on arrays of bytes."""
    small_run(data={"source": save(PIXELS)}, **SECTIONS).fit(quiet=True)
    return load_predictor(tmp_path / "run")


@pytest.mark.parametrize(
    "given",
    [PIXELS.astype(np.int64), PIXELS.astype(np.float32), PIXELS.tolist(), PIXELS / 255],
    ids=["whole numbers", "floats to 255", "lists", "floats to 1"],
)
def test_a_network_of_bytes_is_given_the_pixels_that_are_meant(of_bytes, given):
    known, told = of_bytes({"image": PIXELS}), []
    found = [*of_bytes.stream({"image": given}, tell=told.append)]
    is_converted = float(np.max(given)) > 1
    probabilities = [[one.probability for one in some] for some in (found, known)]
    assert probabilities[0] == (
        probabilities[1] if is_converted else pytest.approx(probabilities[1])
    )
    message = "column 'image': numbers up to 255 are read as bytes, as training had them"
    assert told == ([message] if is_converted else [])


@pytest.mark.parametrize("as_given", [np.ndarray.tolist, np.float32], ids=["lists", "floats"])
def test_a_dark_image_is_of_bytes_alone_as_beside_others(of_bytes, as_given):
    dark = PIXELS[:1] % 3
    assert dark.max() == 2
    (alone,) = of_bytes({"image": as_given(dark)})
    both = of_bytes({"image": as_given(np.concatenate([PIXELS[1:2], dark]))})
    assert alone.probability == both[1].probability == of_bytes({"image": dark})[0].probability


def test_whole_numbers_of_0_and_1_are_bytes_and_such_floats_go_with_the_others(of_bytes):
    black = PIXELS[:1] % 2
    ((whole,), (floats,), (known,)) = (
        of_bytes({"image": each}) for each in (black.tolist(), np.float32(black), black)
    )
    assert whole.probability == known.probability != floats.probability
    both = np.concatenate([black, PIXELS[1:2]]).astype(np.float32)
    assert of_bytes({"image": both})[0].probability == known.probability
    with pytest.raises(DataError, match=r"holds bytes in row 2 of .* and fractions in row 1 of"):
        of_bytes({"image": np.concatenate([PIXELS[:1] / 255, PIXELS[1:2]])})


def test_numbers_that_are_no_bytes_are_refused(of_bytes):
    with pytest.raises(
        DataError, match=r"holds [45]\d\d in row 1 of the input; training had bytes"
    ):
        of_bytes({"image": PIXELS.astype(np.float32) * 2})


def test_eval_and_predict_take_lists_of_bytes_alike(of_bytes, save, call, tmp_path):
    figures = [
        json.loads(call("eval", tmp_path / "run", save(pixels, "new")["path"], "--json").out)
        for pixels in (PIXELS, PIXELS.astype(np.float32))
    ]
    assert figures[0] == figures[1]
    (tmp_path / "new.jsonl").write_text(json.dumps({"image": PIXELS[0].tolist()}))
    shown = call("predict", tmp_path / "run", tmp_path / "new.jsonl")
    assert json.loads(shown.out)["probability"] == of_bytes({"image": PIXELS[:1]})[0].probability
    assert "are read as bytes" in shown.err


def test_validation_arrays_of_another_size_are_told(small_config, save):
    def told(train, validation):
        data = {"train": save(train), "validation": save(validation, "validation")}
        plan = preview(small_config(data=data, **SECTIONS))
        return [lint.message for lint in plan.lints]

    message = "column 'image' of the validation part: mean 12"
    assert any(one.startswith(message) for one in told(PIXELS, PIXELS.astype(np.float32)))
    assert told(PIXELS, PIXELS.astype(np.float32) / 255) == []
    [far] = told(PIXELS.astype(np.float32), PIXELS)
    assert "numbers are far from 1" in far
