"""Order, windows and fetches are pure functions of their arguments."""

import random

import numpy as np
import pytest
import torch

from finetune.config.data import DataConfig
from finetune.data.batches import sample_order, windows
from finetune.data.incoming.prepare_inputs import prepare_inputs
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing

RANDOM = [
    {"type": "RandomRotation", "degrees": 30},
    {"type": "RandomErasing", "p": 0.5},
]


@pytest.fixture
def digits(prepared):
    """The training samples of digits under random transforms."""

    def make(workers=0, seed=0, transforms=RANDOM):
        source = {"type": "sklearn", "name": "digits"}
        config = {"source": source, "transforms": transforms, "workers": workers}
        return prepared(config, seed=seed).train

    return make


def test_the_order_is_a_permutation_that_depends_on_its_arguments_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    order = sample_order(1000, 0, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(order, sample_order(1000, 0, 3))
    assert torch.equal(order.sort().values, torch.arange(1000))
    others = [sample_order(1000, *arguments) for arguments in ((0, 4), (1, 3), (3, 0))]
    assert not any(torch.equal(order, other) for other in others)


@pytest.mark.parametrize(
    ("count", "drop_last", "lengths"),
    [(10, False, [4, 4, 2]), (10, True, [4, 4]), (8, True, [4, 4]), (3, True, []), (3, False, [3])],
)
def test_windows_cut_the_order(count, drop_last, lengths):
    order = sample_order(count, 0, 0)
    cut = windows(order, 4, drop_last=drop_last)
    assert [len(window) for window in cut] == lengths
    assert torch.equal(torch.cat([*cut, order[sum(lengths) :]]), order)


def test_a_fetch_gives_the_rows_asked_for(prepared):
    samples = prepared({"source": {"type": "sklearn", "name": "iris"}}).train
    whole = samples.fetch(range(150))
    some = samples.fetch(torch.tensor([149, 0, 149]))
    assert len(some) == 3
    assert torch.equal(some.inputs["features"], whole.inputs["features"][[149, 0, 149]])
    assert torch.equal(some.target, torch.tensor([2, 0, 2]))
    assert torch.equal(some.indices, torch.tensor([149, 0, 149]))


def test_changing_a_batch_in_place_leaves_the_samples_as_they_were(prepared):
    samples = prepared({"source": {"type": "sklearn", "name": "iris"}}).train
    before = samples.fingerprint()
    samples.fetch(range(150)).inputs["features"].zero_()
    assert samples.fingerprint() == before


def test_random_transforms_depend_on_seed_epoch_and_sample_alone(digits):
    samples = digits()
    alone = samples.fetch([7], epoch=2).inputs["image"][0]
    crowd = samples.fetch([3, 7, 5], epoch=2).inputs["image"][1]
    assert torch.equal(alone, crowd)
    assert torch.equal(alone, digits().fetch([7], epoch=2).inputs["image"][0])
    assert not torch.equal(alone, samples.fetch([7], epoch=1).inputs["image"][0])
    assert not torch.equal(alone, digits(seed=1).fetch([7], epoch=2).inputs["image"][0])


def test_no_two_samples_or_epochs_draw_the_same(tmp_path, prepared):
    """All samples are equal, so equal outcomes would mean equal draws."""
    np.savez(tmp_path / "a.npz", features=np.full((20, 1, 4, 4), 0.5), target=np.zeros(20))
    source = {"type": "arrays", "path": str(tmp_path / "a.npz")}
    config = {"source": source, "transforms": [{"type": "GaussianNoise"}]}
    samples = prepared(config, "regression").train
    epochs = [samples.fetch(range(20), epoch=epoch).inputs["features"] for epoch in range(3)]
    assert len({tuple(one.flatten().tolist()) for epoch in epochs for one in epoch}) == 60


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(digits):
    order = windows(sample_order(200, 0, 1), 32, drop_last=False)
    here = list(digits().fetches(order, 1))
    before = torch.get_rng_state()
    there = list(digits(workers=2).fetches(order, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(here) == len(there) == 7
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.inputs["image"], other.inputs["image"])
        assert torch.equal(one.target, other.target)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.slow
def test_fetching_leaves_the_random_states_alone(digits):
    samples = digits()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    samples.fetch(range(8))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_in_training_is_told_from_any_process(
    tmp_path, write_images, prepared, workers
):
    source = write_images({"a": [(20, 30), (25, 21)]})
    config = {"source": source, "transforms": [{"type": "RandomResizedCrop", "size": [8, 8]}]}
    samples = prepared(config | {"workers": workers}).train
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"^cannot read the image '.*1\.png'") as caught:
        list(samples.fetches([torch.tensor([1])], 0))
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_the_fingerprint_changes_with_contents_and_random_transforms(digits, prepared, mnist):
    prints = [
        digits().fingerprint(),
        digits(transforms=RANDOM[:1]).fingerprint(),
        digits(transforms=[]).fingerprint(),
        digits(transforms=[{"type": "Resize", "size": 9}]).fingerprint(),
        prepared({"source": mnist}).train.fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert digits().fingerprint() == digits().fingerprint()


@pytest.mark.slow
def test_prediction_sees_what_evaluation_sees(prepared, opened, minilm, bbc):
    split = {"test": 0.01}
    config = {"source": bbc, "split": split, "transforms": [{"type": "tokenize"}]}
    test = prepared(config, tokenizer=minilm).test
    raw = opened(config)
    rows = {"text": list(raw.test.table.columns["text"].values), "more": []}
    samples = prepare_inputs(
        rows, DataConfig.model_validate(config), raw.facts, Preprocessing(minilm, None), trust=()
    )
    assert len(samples) == len(test) == 22
    batch = samples.fetch(range(22))
    assert batch.target is None
    for name, values in test.fetch(range(22)).inputs.items():
        assert torch.equal(batch.inputs[name], values)


@pytest.mark.parametrize("as_path", [True, False], ids=["path", "PIL"])
def test_prediction_reads_images_as_training_did(tmp_path, write_images, prepared, opened, as_path):
    from PIL import Image

    source = write_images({"a": [(6, 6)] * 2}, mode="L")
    config = {"source": source}
    path = tmp_path / "images" / "a" / "1.png"
    samples = prepare_inputs(
        {"image": [str(path) if as_path else Image.open(path).convert("RGB")]},
        DataConfig.model_validate(config),
        opened(config).facts,
        Preprocessing(None, None),
        trust=(),
    )
    trained = prepared(config).train.fetch([1])
    assert torch.equal(samples.fetch([0]).inputs["image"], trained.inputs["image"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"b": ["1"]}, "no column 'a'; there are: b"),
        ({"a": [], "b": []}, "no samples"),
        ({"a": ["1"], "b": ["1", "2"]}, "different lengths"),
        ({"a": ["one"], "b": ["2"]}, "column 'a' holds 'one' in row 1 of the input where a number"),
        ({"a": ["nan"], "b": ["2"]}, "column 'a' holds nan in row 1 of the input"),
        ({"a": [None], "b": ["2"]}, "'a' has no value in row 1"),
        ({"a": ["1"], "b": ["2.5"]}, "column 'b' needs whole numbers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_input_to_prediction_is_told(write_csv, opened, rows, message):
    source = write_csv([["a", "b", "label"], ["1.5", "2", "x"], ["2", "3", "y"]])
    config = {"source": source, "inputs": ["a", "b"]}
    with pytest.raises(DataError, match=message):
        prepare_inputs(
            rows,
            DataConfig.model_validate(config),
            opened(config).facts,
            Preprocessing(None, None),
            trust=(),
        )
