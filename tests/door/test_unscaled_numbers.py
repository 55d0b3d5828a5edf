"""Numbers far from 1 that a layer multiplies, or that are to be learnt, are told with a remedy."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli.plans import preview
from finetune.config.loader import load_config

ROOT = Path(__file__).parents[2]
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}
OUT = {"name": "head", "type": "Linear", "out_features": 1}
STACK = {"type": "stack"}
SCALED = {"type": "standardize", "columns": ["fare"]}
REGRESSION = {"type": "regression"}


@pytest.fixture
def noted(tmp_path, small_config):
    """Return the notes of a plan on unscaled numbers, or on a word that is given."""

    def plan(
        layers=(HEAD,),
        transforms=(STACK,),
        task=None,
        inputs=("age", "fare"),
        target="y",
        about="far from 1",
    ):
        # Ages are of the usual size; fares are not, nor are prices.
        rows = [f"{n % 7},{300 + 40 * (n % 5)},{n % 3},{9000 + n},{'ab'[n % 2]}" for n in range(60)]
        (tmp_path / "t.csv").write_text("\n".join(["age,fare,town,price,y", *rows]) + "\n")
        source = {"type": "csv", "path": str(tmp_path / "t.csv")}
        keys = {"inputs": list(inputs), "target": target, "transforms": list(transforms) or None}
        config = small_config(
            model={"layers": list(layers)},
            data={"source": source, **keys},
            task=task or {"type": "classification"},
        )
        return [lint for lint in preview(config).lints if about in lint.message]

    return plan


def test_a_column_that_nothing_scales_is_named_with_mean_deviation_and_remedy(noted):
    (lint,) = noted()
    assert "column 'fare'" in lint.message
    assert "mean 380, standard deviation 57.0" in lint.message
    assert "{type: standardize, columns: [fare]}" in lint.hint
    (alone,) = noted(inputs=["fare"], transforms=[{"type": "stack", "columns": ["fare"]}])
    assert "column 'fare'" in alone.message


@pytest.mark.parametrize(
    "how",
    [
        {"transforms": [SCALED, STACK]},
        {"layers": [{"type": "BatchNorm1d", "name": "norm"}, HEAD]},
        {"layers": [{"type": "Flatten", "name": "flat"}, {"type": "LayerNorm"}, HEAD]},
        {"inputs": ["age"]},
    ],
    ids=["standardize", "a norm first", "a norm behind flatten", "usual sizes"],
)
def test_numbers_that_something_scales_are_not_told(noted, how):
    assert noted(**how) == []


def test_a_layer_that_passes_numbers_on_scales_nothing(noted):
    assert len(noted(layers=[{"type": "Dropout", "name": "drop"}, HEAD])) == 1


def test_numbers_to_learn_are_told_to_be_given_in_other_units(noted):
    how = {"layers": [OUT], "task": REGRESSION, "target": "price", "inputs": ["age", "town"]}
    (lint,) = noted(**how)
    assert "numbers to learn" in lint.message
    assert "mean 9,0" in lint.message
    assert "in other units" in lint.hint
    assert "{type: affine, scale: 17.46, shift: 9030}" in lint.hint
    assert noted(**how | {"target": "town"}) == []


def test_a_last_layer_in_the_unit_of_the_target_needs_no_note(noted):
    how = {"task": REGRESSION, "target": "price", "inputs": ["age", "town"]}
    unit = {"name": "unit", "type": "affine", "scale": 17.0}
    assert noted(**how, layers=[OUT, unit | {"shift": 9030.0}]) == []
    assert len(noted(**how, layers=[OUT, unit])) == 1


FLAT = ({"type": "Flatten"}, HEAD)
CONV = ({"type": "Conv2d", "out_channels": 2, "kernel_size": 3}, *FLAT)
RESNET = ({"type": "torchvision", "architecture": "resnet18", "pretrained": False}, HEAD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "layers", "is_told"),
    [
        (np.float32(255), FLAT, True),
        (np.float64(65535), CONV, True),
        (np.float32(4000), RESNET, True),
        (np.float32(1), CONV, False),
        (np.uint8(255), CONV, False),
        (np.float32(255), ({"type": "BatchNorm2d"}, *CONV), False),
    ],
    ids=["flat", "16 bits", "a whole network", "0..1", "uint8", "a norm first"],
)
def test_arrays_of_images_that_nothing_scales_are_told(
    tmp_path, small_config, values, layers, is_told
):
    pixels = np.linspace(0, 1, 40 * 3 * 32 * 32).reshape(40, 3, 32, 32) * np.float64(values)
    np.savez(tmp_path / "a.npz", image=pixels.astype(values.dtype), label=np.arange(40) % 2)
    config = small_config(
        model={"layers": list(layers)},
        data={
            "source": {"type": "arrays", "path": str(tmp_path / "a.npz")},
            "inputs": ["image"],
            "target": "label",
        },
        task={"type": "classification"},
    )
    told = [lint for lint in preview(config).lints if "far from 1" in lint.message]
    assert len(told) == is_told
    assert all("dtype: uint8" in lint.hint for lint in told)


FLOATS = {"type": "ToDtype", "dtype": "float32"}
NORMALIZE = {"type": "Normalize", "mean": [0.5], "std": [0.2]}


@pytest.fixture
def of_images(tmp_path, small_config):
    """Return what `plan` tells of grey image files with some transforms."""
    for number in range(8):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "ab"[number % 2] / f"{number}.png")

    def told(**data):
        source = {"type": "imagefolder", "path": str(tmp_path / "images")}
        task = {"type": "classification"}
        layers = [{"type": "Flatten"}, {"type": "Linear", "out_features": "classes"}]
        data = {"source": source, "split": {"validation": 0.25}} | data
        plan = preview(small_config(model={"layers": layers}, data=data, task=task))
        return [lint.message for lint in plan.lints], plan.parts.data.notes

    return told


def test_pixels_that_a_step_leaves_from_0_to_255_are_told(of_images):
    [lint], _ = of_images(transforms=[FLOATS, NORMALIZE])
    assert lint.startswith("column 'image': numbers are far from 1 (mean 6")
    assert "ToDtype leaves bytes from 0 to 255" in lint
    assert of_images(transforms=[FLOATS | {"scale": True}, NORMALIZE]) == ([], ())
    # Figures of the bytes themselves are right.
    assert of_images(transforms=[FLOATS, NORMALIZE | {"mean": [127], "std": [70]}]) == ([], ())


def test_an_evaluation_that_scales_otherwise_is_told(of_images):
    scaled = FLOATS | {"scale": True}
    steps = {"transforms": [scaled, {"type": "RandomHorizontalFlip"}, NORMALIZE]}
    assert of_images(**steps, evaluation_transforms=[scaled, NORMALIZE]) == ([], ())
    _, [note] = of_images(**steps, evaluation_transforms=[scaled])
    assert note.startswith(
        "column 'image': training has Normalize (mean 0.5, std 0.2), evaluation and prediction "
        "have no step that scales it"
    )


@pytest.mark.parametrize("channels", ["first", "last"])
def test_a_fourth_channel_of_arrays_is_told_to_be_no_transparency(tmp_path, small_config, channels):
    shape = (40, 4, 8, 8) if channels == "first" else (40, 8, 8, 4)
    np.savez(tmp_path / "a.npz", image=np.zeros(shape, np.uint8), label=np.arange(40) % 2)
    config = small_config(
        model={"layers": list(FLAT)},
        data={
            "source": {"type": "arrays", "path": str(tmp_path / "a.npz"), "channels": channels},
            "inputs": ["image"],
            "target": "label",
        },
        task={"type": "classification"},
    )
    (note,) = [note for note in preview(config).parts.data.notes_on_all if "4 channels" in note]
    assert "the fourth is taken as it is" in note


@pytest.mark.parametrize("path", ["penguins", "digits", "digits_freeze", "linear"])
def test_shipped_configs_are_not_told_to_scale(path):
    config = load_config(ROOT / f"configs/{path}.yaml", ["train.device=cpu"])
    assert [lint for lint in preview(config).lints if "far from 1" in lint.message] == []


def test_a_target_among_the_inputs_is_told_by_its_name(noted):
    keys = {"layers": [OUT], "task": REGRESSION, "target": "age", "about": "must predict"}
    (lint,) = noted(**keys)
    assert lint.message.startswith("the target 'age' is among the inputs too")
    assert noted(**keys, inputs=["fare"]) == []
