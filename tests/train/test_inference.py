"""`inference:` decides how the trained network is called, alike by predict, eval and serve."""

import math

import pytest
import torch

from finetune import FinetuneError, load_predictor, load_predictors
from finetune.bits import same_bits
from finetune.train.after.trained import evaluate_run

PLAIN = ["inference.precision=float32", "inference.compile=false"]
CLASSES = {"type": "sklearn", "name": "digits"}
PICTURES = {
    "model": {
        "layers": [
            {"name": "body", "type": "Conv2d", "out_channels": 8, "kernel_size": 3, "padding": 1},
            {"name": "act", "type": "ReLU"},
            {"name": "more", "type": "Conv2d", "out_channels": 4, "kernel_size": 3},
            {"name": "pool", "type": "AdaptiveAvgPool2d", "output_size": 1},
            {"name": "flat", "type": "Flatten"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {"source": CLASSES, "split": {"test": 0.2}},
    "task": {"type": "classification"},
    "freeze": ["body"],
    "train": {"steps": 2, "batch_size": 16},
}
NUMBERS = torch.linspace(-1, 1, 20).reshape(5, 4).tolist()
IMAGES = torch.linspace(0, 1, 5 * 64).reshape(5, 1, 8, 8)


def values(records):
    return torch.tensor([record.values for record in records], dtype=torch.float64)


@pytest.fixture
def numbers(small_run, tmp_path):
    """A trained run on numbers."""
    data = {"source": {"type": "random", "samples": 40, "features": 4, "targets": 3}}
    small_run(data=data | {"split": {"test": 0.2}}).fit(quiet=True)
    return tmp_path / "run"


@pytest.fixture
def pictures(small_run, tmp_path):
    """A trained run on images."""
    small_run(**PICTURES).fit(quiet=True)
    return tmp_path / "run"


def test_float32_without_compile_gives_the_bits_of_the_network_itself(numbers):
    predictor = load_predictor(numbers, overrides=PLAIN)
    (column,) = predictor.run.columns
    with torch.inference_mode():
        own = predictor.model(**{column: torch.tensor(NUMBERS)})
    assert torch.equal(values(predictor(NUMBERS)), own.double())
    assert torch.equal(values(load_predictor(numbers)(NUMBERS)), own.double())
    assert evaluate_run(numbers) == evaluate_run(numbers, overrides=PLAIN)


def test_bfloat16_reaches_predictions_evaluation_and_shared_passes_alike(numbers):
    half = ["inference.precision=bfloat16"]
    predictor = load_predictor(numbers, overrides=half)
    found = values(predictor(NUMBERS))
    assert torch.equal(found, found.bfloat16().double())
    exact = values(load_predictor(numbers)(NUMBERS))
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    assert torch.equal(values(load_predictors([numbers], overrides=half)(NUMBERS)["run"]), found)
    assert evaluate_run(numbers, overrides=half)["loss"] != evaluate_run(numbers)["loss"]
    assert predictor.run.notes == (
        "`inference`: the network is called in bfloat16 (trained in float32): figures and "
        "predictions may differ a little from those at the end of training",
    )


def test_the_layout_of_one_run_leaves_another_one_that_is_loaded_with_it(small_run, tmp_path):
    shared = PICTURES | {"freeze": ["body", "more"]}
    small_run("plain", **shared).fit(quiet=True)
    small_run("last", **shared, inference={"channels_last": True}).fit(quiet=True)
    predictors = load_predictors([tmp_path / "plain", tmp_path / "last"])
    layouts = [
        predictors[name].model.get_parameter("more.weight").is_contiguous() for name in predictors
    ]
    assert layouts == [True, False]


def test_channels_last_reaches_weights_and_images_and_changes_no_value(pictures, monkeypatch):
    layouts, own = [], torch.nn.Conv2d.forward

    def noted(self, image):
        # of one channel both layouts are the same, so the second convolution is looked at
        if image.shape[1] > 1:
            layouts.append((self.weight.stride()[1], image.stride()[1]))
        return own(self, image)

    predictor = load_predictor(pictures, overrides=["inference.channels_last=true"])
    plain = load_predictor(pictures)
    wanted = values(plain(IMAGES))
    monkeypatch.setattr("torch.nn.Conv2d.forward", noted)
    torch.testing.assert_close(values(predictor(IMAGES)), wanted)
    assert layouts == [(1, 1)]
    colours = predictor.run.inference.laid_out({"image": torch.zeros(2, 3, 4, 4)})["image"]
    assert colours.stride() == (48, 1, 12, 3)
    for name, tensor in plain.model.state_dict().items():
        assert same_bits(tensor, predictor.model.state_dict()[name])
    layouts.clear()
    figures = evaluate_run(pictures, overrides=["inference.channels_last=true"])
    # the first calls are those of the network that is built, on a batch of zeros
    assert layouts[-1] == (1, 1)
    assert math.isfinite(figures["loss"])


def test_what_would_have_no_effect_or_cannot_be_had_is_refused(small_run, numbers, monkeypatch):
    with pytest.raises(FinetuneError, match="channels_last would change nothing: no input is an"):
        load_predictor(numbers, overrides=["inference.channels_last=true"])
    with pytest.raises(FinetuneError, match="channels_last would change nothing"):
        small_run("other", inference={"channels_last": True})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FinetuneError, match="no-such-compiler not found") as refused:
        load_predictor(numbers, overrides=["inference.compile=true", "train.device=cpu"])
    assert "inference.compile" in refused.value.hint
    with pytest.raises(FinetuneError, match="float16 needs a GPU") as refused:
        load_predictor(numbers, overrides=["inference.precision=float16", "train.device=cpu"])
    assert refused.value.key == ("inference", "precision")


def test_compiled_runs_share_no_prefix_and_give_no_embeddings(numbers):
    # torch compiles at the first call, and none comes here
    compiled = ["inference.compile=true"]
    predictors = load_predictors([numbers], overrides=compiled)
    assert predictors.notes() == ["run runs alone: it runs as compiled code"]
    with pytest.raises(FinetuneError, match="compiled code does not give"):
        predictors["run"].tapped("body")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler hides warnings that it expects
def test_compiled_code_predicts_and_evaluates_what_the_network_does(numbers):
    compiled = ["inference.compile=true"]
    predictor = load_predictor(numbers, overrides=compiled, batch_size=2)
    calls = []
    predictor.model.register_forward_pre_hook(
        lambda *_: calls.append(torch.compiler.is_compiling())
    )
    exact = values(load_predictor(numbers, batch_size=2)(NUMBERS))
    torch.testing.assert_close(values(predictor(NUMBERS)), exact)
    assert any(calls)
    one, other = evaluate_run(numbers, overrides=compiled), evaluate_run(numbers)
    assert one == pytest.approx(other, rel=1e-5)
