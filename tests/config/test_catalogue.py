"""The catalogue says what the installed torch and torchvision really offer."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn, optim
from torchvision import tv_tensors
from torchvision.transforms import v2

from finetune.config import model, transform_keys
from finetune.config.catalogue import INFERRED, LAYERS, OPTIMIZERS, TRANSFORMS, check_arguments
from finetune.config.optim import OptimizerConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator():
    path = ROOT / "scripts" / "make_catalogue.py"
    spec = importlib.util.spec_from_file_location("make_catalogue", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_generator_makes_of_the_installed_versions(generator):
    made = generator.make_catalogue()
    kept = json.loads(generator.TARGET.read_text(encoding="utf-8"))
    assert made["versions"] == kept["versions"], "run scripts/make_catalogue.py"
    assert f"{generator.write(made)}\n" == generator.TARGET.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "present", "absent"),
    [
        (
            LAYERS,
            {"Linear", "Conv2d", "LSTM", "Embedding", "MultiheadAttention", "ReLU", "Flatten"},
            {"LazyLinear", "CrossEntropyLoss", "Sequential", "Module", "TransformerEncoder"},
        ),
        (
            OPTIMIZERS,
            {"AdamW", "SGD", "Muon", "Adafactor", "Rprop"},
            {"SparseAdam", "LBFGS", "Optimizer"},
        ),
        (
            TRANSFORMS,
            {"Resize", "Normalize", "RandomCrop", "TrivialAugmentWide", "ToDtype"},
            {"Lambda", "Compose", "CutMix", "RandomApply", "RandomIoUCrop", "ToPILImage"},
        ),
    ],
    ids=["layers", "optimizers", "transforms"],
)
def test_the_tables_hold_what_yaml_can_name_and_nothing_else(table, present, absent):
    assert present <= set(table)
    assert not absent & set(table)


def test_no_argument_shares_its_name_with_a_key_of_the_node():
    for table, node in (
        (LAYERS, model.TorchLayer),
        (TRANSFORMS, transform_keys.VisionTransform),
        (OPTIMIZERS, OptimizerConfig),
    ):
        for name, entry in table.items():
            assert not set(entry.arguments) & set(node.model_fields), name


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # Transformer's own defaults
def test_every_class_can_be_built_of_the_arguments_listed_as_required():
    for name, entry in LAYERS.items():
        needed = {
            key: 2 if "int" in one.kinds or "float" in one.kinds else (2, 2)
            for key, one in entry.arguments.items()
            if one.required
        }
        one_of_two = {"output_size": 2} if name.startswith("Fractional") else {}
        getattr(nn, name)(**needed, **one_of_two)
    weights = [nn.Parameter(torch.zeros(2, 2))]
    for name in OPTIMIZERS:
        getattr(optim, name)(weights, lr=0.1)


NEEDED = {
    "size": 6,
    "dtype": torch.float32,
    "mean": [0.5],
    "std": [0.5],
    "padding": 1,
    "degrees": 45,
    "min_size": 4,
    "max_size": 12,
    "target_size": [32, 32],
    "bits": 2,
    "threshold": 0.2,
    "kernel_size": 3,
    "sharpness_factor": 9.0,
}
# Makes a change likely where the default would leave a small image as it is.
LIVELY = {
    "ColorJitter": {"brightness": 0.9},
    "RandomAffine": {"degrees": 90},
    "RandomShortestSize": {"min_size": [4, 6, 9, 12]},
    "RandomAdjustSharpness": {"sharpness_factor": 9.0},
}
ON_BYTES = {"RandomPosterize", "RandomEqualize", "AutoAugment", "AugMix", "RandAugment"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_transform_is_random_exactly_if_two_calls_may_differ(name):
    entry = TRANSFORMS[name]
    arguments = {key: NEEDED[key] for key, one in entry.arguments.items() if one.required}
    transform = getattr(v2, name)(**arguments | LIVELY.get(name, {}))
    image = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) / 2
    if name in ON_BYTES | {"TrivialAugmentWide"}:
        image = (image * 255).to(torch.uint8)
    seen = []
    for seed in range(60):
        torch.manual_seed(seed)
        seen.append(transform(tv_tensors.Image(image.clone())))
    differs = any(one.shape != seen[0].shape or not torch.equal(one, seen[0]) for one in seen)
    assert differs == entry.random


def test_a_single_number_leaves_nothing_random_where_a_range_is_drawn_from():
    assert TRANSFORMS["GaussianBlur"].is_random_with({"kernel_size": 3})
    assert TRANSFORMS["GaussianBlur"].is_random_with({"kernel_size": 3, "sigma": (0.1, 2.0)})
    assert not TRANSFORMS["GaussianBlur"].is_random_with({"kernel_size": 3, "sigma": 1})
    assert TRANSFORMS["RandomCrop"].is_random_with({"size": 3})
    assert not TRANSFORMS["Resize"].is_random_with({"size": 3})


@pytest.mark.parametrize(
    ("type_", "arguments", "complaints"),
    [
        ("Linear", {"out_features": 3}, []),
        ("Linear", {"out_features": "classes", "bias": False}, []),
        ("Conv2d", {"out_channels": 3, "kernel_size": (3, 3), "padding": "same"}, []),
        ("BatchNorm2d", {"momentum": None, "eps": 1}, []),
        ("GRU", {"hidden_size": 4, "bidirectional": True}, []),
        (
            "linear",
            {},
            [(("type",), "no layer 'linear'", "did you mean 'Linear'?")],
        ),
        (
            "Linear",
            {"out_feature": 3},
            [
                (
                    ("out_feature",),
                    "Linear has no argument 'out_feature'",
                    "did you mean 'out_features' or 'in_features'?",
                )
            ],
        ),
        (
            "ReLU",
            {"zzz": 3},
            [(("zzz",), "ReLU has no argument 'zzz'", "ReLU takes inplace")],
        ),
        (
            "Sigmoid",
            {"zzz": 3},
            [(("zzz",), "Sigmoid has no argument 'zzz'", "Sigmoid takes no arguments")],
        ),
        ("Linear", {}, [(("out_features",), "missing, and Linear needs it", None)]),
        (
            "Linear",
            {"out_features": "clases"},
            [(("out_features",), "needs a whole number, got 'clases'", "did you mean 'classes'?")],
        ),
        (
            "Linear",
            {"out_features": 3, "bias": "no"},
            [(("bias",), "needs true or false, got 'no'", None)],
        ),
        (
            "Conv1d",
            {"out_channels": True, "kernel_size": 1, "padding_mode": "zero"},
            [
                (("out_channels",), "needs a whole number, got true", None),
                (
                    ("padding_mode",),
                    "needs one of 'zeros', 'reflect', 'replicate', 'circular', got 'zero'",
                    "did you mean 'zeros'?",
                ),
            ],
        ),
    ],
)
def test_what_is_wrong_with_the_arguments_of_a_layer(type_, arguments, complaints):
    assert check_arguments(LAYERS, "layer", type_, arguments) == complaints


def test_types_beside_the_table_are_suggested_too():
    (complaint,) = check_arguments(LAYERS, "layer", "concatt", {}, also=["concat", "add"])
    assert complaint[2] == "did you mean 'concat'?"


def test_inferred_arguments_are_required_ones():
    required = {
        name
        for table in (LAYERS, TRANSFORMS)
        for entry in table.values()
        for name, argument in entry.arguments.items()
        if argument.required
    }
    assert required >= INFERRED
