"""Calibrated probabilities: the temperature of Guo et al. 2017, fitted, kept, used and told."""

import json
import math

import pytest
import torch

from finetune import FinetuneError, load_predictor
from finetune.config.loader import load_config
from finetune.data.batches import Batch
from finetune.tasks.temperature import best_temperature, calibration_error

ASKED = {"calibrate": "temperature"}
DIGITS = {
    "model": {
        "layers": [
            {"name": "flat", "type": "Flatten"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {
        "source": {"type": "sklearn", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2},
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 1.0},
    "train": {"steps": 60, "batch_size": 32},
}


@pytest.fixture
def run(small_run, tmp_path):
    """Train a classifier; return its folder."""

    def train(name="run", **changes):
        small_run(name, **DIGITS | changes).fit(quiet=True)
        return tmp_path / name

    return train


def overconfident(temperature, count=4000):
    """Return logits that are `temperature` times those by which the classes were drawn."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=draw, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=draw).squeeze(1)
    return temperature * logits, target


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_with_the_least_negative_log_likelihood(temperature):
    logits, target = overconfident(temperature)
    found, why = best_temperature(logits, target)
    assert why is None
    assert found == pytest.approx(temperature, rel=0.1)

    def loss(value):
        return float(torch.nn.functional.cross_entropy(logits / value, target))

    assert loss(found) < min(loss(found * 0.999), loss(found * 1.001))


@pytest.mark.parametrize(
    ("logits", "why"),
    [
        ([[9.0, 0.0], [0.0, 9.0]], "every sample is predicted rightly"),
        ([[0.0, 1.0], [1.0, 0.0]], "say nothing"),
        ([[math.nan, 1.0], [1.0, 0.0]], "not finite"),
    ],
)
def test_where_no_temperature_is_best_there_is_none(logits, why):
    found, told = best_temperature(torch.tensor(logits, dtype=torch.float64), torch.tensor([0, 1]))
    assert found is None
    assert why in told


def test_the_calibration_error_is_that_of_fifteen_bins():
    logits, target = overconfident(3.0, count=500)
    shares = logits.softmax(1)
    wanted = 0.0
    for number in range(15):
        inside = [
            (float(row.max()), int(row.argmax()) == int(label))
            for row, label in zip(shares, target, strict=True)
            if number / 15 < float(row.max()) <= (number + 1) / 15
        ]
        if inside:
            sure, right = (sum(each) / len(inside) for each in zip(*inside, strict=True))
            wanted += len(inside) / 500 * abs(right - sure)
    assert calibration_error(shares, target) == pytest.approx(wanted)


def test_predictions_and_eval_use_the_temperature_that_the_run_has_kept(run, command_line):
    folder = run(inference=ASKED)
    kept = json.loads((folder / "summary.json").read_text())["temperature"]
    assert kept["value"] not in (None, 1.0)
    images = torch.rand(8, 1, 8, 8)
    plain = load_predictor(folder, overrides=["inference.calibrate=null"])(images)
    for calibrated, one in zip(load_predictor(folder)(images), plain, strict=True):
        assert (calibrated.label, calibrated.values) == (one.label, one.values)
        shares = (torch.tensor(one.values) / kept["value"]).softmax(0).tolist()
        assert list(calibrated.probabilities.values()) == shares
        assert list(one.probabilities.values()) == torch.tensor(one.values).softmax(0).tolist()
        assert calibrated.probability == calibrated.probabilities[calibrated.label]
    # on the samples that it was fitted on; on few others it may happen to be worse
    said = json.loads(command_line("eval", folder, "--split", "validation", "--json").out)
    assert said["calibration_error"]["after"] < said["calibration_error"]["before"]
    shown = command_line("eval", folder, "--split", "validation").out
    assert "validation/calibration_error" in shown
    assert "without the temperature" in shown


def test_a_run_that_has_ended_fits_it_when_it_is_started_again(run, small_run):
    folder = run()
    (note,) = load_predictor(folder, overrides=["inference.calibrate=temperature"]).run.notes
    assert note.startswith("no temperature is fitted for the weights of step ")
    before = (folder / "metrics.jsonl").read_text()
    weights = load_predictor(folder).model.state_dict()
    trainer = small_run("run", **DIGITS, inference=ASKED)
    trainer.fit(quiet=True)
    kept = json.loads((folder / "summary.json").read_text())["temperature"]["value"]
    again = load_predictor(folder)
    assert again.run.notes == ()
    assert again.run.task.temperature.value == kept != 1.0
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    # no step is taken; the test is evaluated once more, as after a kill
    assert (folder / "metrics.jsonl").read_text().startswith(before.rpartition('{"step": 60')[0])


def test_what_a_stopped_evaluation_has_collected_is_not_fitted_on(run, small_run, tmp_path):
    def value(folder):
        return json.loads((folder / "summary.json").read_text())["temperature"]["value"]

    wanted = value(run(inference=ASKED))
    trainer = small_run("stopped", **DIGITS, inference=ASKED)
    half = Batch({}, torch.arange(8), torch.arange(8))
    trainer.evaluator.task.temperature.collect(torch.rand(8, 10), half)
    trainer.fit(quiet=True)
    assert value(tmp_path / "stopped") == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"type": "regression"}}, "not for this regression task"),
        (
            {"task": {"type": "classification", "losses": [{"type": "triplet"}]}},
            "not for this classification",
        ),
        ({"task": {"type": "classification", "threshold": 0.4}}, "the threshold is one for"),
    ],
    ids=["numbers", "embeddings", "threshold"],
)
def test_what_has_no_probabilities_to_calibrate_is_refused(small_config, changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**DIGITS | changes, inference=ASKED)


def test_the_key_and_a_remedy_are_named(tmp_path, small_run):
    file = tmp_path / "run.yaml"
    config = DIGITS | {"task": {"type": "multilabel"}, "inference": ASKED}
    file.write_text(json.dumps(config, indent=1))
    with pytest.raises(FinetuneError, match=r"inference\.calibrate: is for a classification"):
        load_config(file)
    data = DIGITS["data"] | {"split": {"test": 0.2}}
    with pytest.raises(FinetuneError, match="fitted on validation samples, and there are none"):
        small_run("other", **DIGITS | {"data": data, "inference": ASKED})
