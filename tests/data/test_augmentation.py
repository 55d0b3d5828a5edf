"""Augmentation: torchvision's policies, masked tokens, masked bands of spectrograms."""

import numpy as np
import pytest
import torch

from finetune.errors import DataError

POLICIES = [
    {"type": "RandAugment"},
    {"type": "RandAugment", "num_ops": 3, "magnitude": 20},
    *({"type": "AutoAugment", "policy": name} for name in ("imagenet", "cifar10", "svhn")),
    {"type": "TrivialAugmentWide"},
    {"type": "AugMix"},
    {"type": "AugMix", "severity": 8, "mixture_width": 2, "all_ops": False},
]
ERASING = [{"value": 0}, {"value": 114}, {"value": [120, 110, 100]}, {"scale": [0.3, 0.4]}]
OF_FLOATS = [{"value": "random"}, {"value": [0.4, 0.5, 0.6]}, {"value": -0.5}]
SCALED = {"type": "ToDtype", "dtype": "float32", "scale": True}


@pytest.fixture(params=["files", "grey files", "arrays"])
def source(request, write_images, tmp_path):
    """Images of each form, with classes."""
    if request.param != "arrays":
        mode = "L" if "grey" in request.param else "RGB"
        return write_images({"a": [(24, 24)] * 4, "b": [(24, 24)] * 4}, mode)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 3, 24, 24), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=np.arange(8) % 2)
    return {"type": "arrays", "path": str(tmp_path / "images.npz")}


def both_epochs(prepared, source, *steps):
    """Return the images of all samples in two epochs and those of evaluation."""
    data = {"source": source, "inputs": ["image"], "target": "label", "transforms": steps}
    samples = prepared(data).train
    rows = torch.arange(len(samples))
    first, second = (samples.fetch(rows, epoch=epoch).inputs["image"] for epoch in (0, 1))
    assert torch.equal(first, samples.fetch(rows, epoch=0).inputs["image"])
    return first, second


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_works_on_images_of_every_form(prepared, source, policy):
    first, second = both_epochs(prepared, source, policy)
    assert first.dtype == torch.float32
    assert first.shape[2:] == (24, 24)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, second)


@pytest.mark.parametrize("arguments", ERASING, ids=str)
def test_erasing_fills_images_of_bytes(prepared, source, arguments):
    first, second = both_epochs(prepared, source, erasing(source, arguments))
    assert not torch.equal(first, second)


def erasing(source, arguments):
    """The step that erases, with one value for images of one channel."""
    value = arguments.get("value")
    if isinstance(value, list) and source.get("mode") == "L":
        arguments = {"value": value[:1]}
    return {"type": "RandomErasing", "p": 1.0} | arguments


@pytest.mark.parametrize("arguments", OF_FLOATS, ids=str)
def test_erasing_fills_images_of_floats_with_noise_and_fractions(prepared, source, arguments):
    first, second = both_epochs(prepared, source, SCALED, erasing(source, arguments))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("arguments", OF_FLOATS, ids=str)
def test_erasing_refuses_to_fill_bytes_with_what_no_byte_holds(prepared, write_images, arguments):
    source = write_images({"a": [(24, 24)] * 2, "b": [(24, 24)] * 2})
    with pytest.raises(DataError, match="fills images of bytes with whole numbers") as caught:
        both_epochs(prepared, source, {"type": "RandomErasing", "p": 1.0} | arguments)
    assert "ToDtype" in caught.value.hint


TEXTS = ["the quick brown fox jumps over the lazy dog again and again"] * 20


@pytest.fixture
def masked(write_csv, prepared, minilm):
    """Return samples of texts whose tokens are masked, and those that are not."""

    def make(probability=0.15, **data):
        rows = [["text", "label"], *([text, "ab"[n % 2]] for n, text in enumerate(TEXTS))]
        config = {
            "source": write_csv(rows),
            "inputs": ["text"],
            "target": "label",
            "split": {"validation": 0.5},
            "transforms": [
                {"type": "tokenize", "tokenizer": minilm},
                {"type": "mask_tokens", "probability": probability},
            ],
        } | data
        return prepared(config)

    return make


def test_tokens_are_masked_in_training_alone_and_special_ones_never(masked):
    data = masked(0.5)
    batch, plain = data.train.fetch(torch.arange(10)), data.validation.fetch(torch.arange(10))
    ids, usual = batch.inputs["input_ids"], plain.inputs["input_ids"]
    assert ids.shape == usual.shape
    is_masked = ids != usual
    assert set(ids[is_masked].tolist()) == {103}
    assert 0.3 < is_masked[:, 1:-1].float().mean() < 0.7
    assert not bool(is_masked[:, [0, -1]].any())
    assert torch.equal(batch.inputs["attention_mask"], plain.inputs["attention_mask"])


def test_which_tokens_are_masked_depends_on_epoch_and_sample(masked):
    samples = masked(0.5).train
    first = samples.fetch([0, 1], epoch=0).inputs["input_ids"]
    assert torch.equal(samples.fetch([1], epoch=0).inputs["input_ids"], first[1:])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(samples.fetch([0, 1], epoch=1).inputs["input_ids"], first)


def test_mask_tokens_comes_after_tokenize(prepared, write_csv):
    rows = [["text", "label"], *([text, "ab"[n % 2]] for n, text in enumerate(TEXTS))]
    data = {"source": write_csv(rows), "inputs": ["text"], "target": "label",
            "transforms": [{"type": "mask_tokens"}]}  # fmt: skip
    with pytest.raises(DataError, match="comes after it"):
        prepared(data)


@pytest.fixture
def spectrograms(tmp_path, prepared):
    """Return samples of spectrograms of ones, whose bands are masked."""

    def make(shape=(1, 20, 50), dtype=np.float32, **arguments):
        np.savez(tmp_path / "sound.npz", sound=np.ones((6, *shape), dtype), label=np.arange(6) % 2)
        return prepared(
            {
                "source": {"type": "arrays", "path": str(tmp_path / "sound.npz")},
                "inputs": ["sound"],
                "target": "label",
                "split": {"validation": 0.5},
                "transforms": [{"type": "spec_augment"} | arguments],
            }
        )

    return make


@pytest.mark.parametrize("shape", [(20, 50), (1, 20, 50), (2, 20, 50)], ids=str)
def test_bands_of_frequency_and_time_are_masked_in_training_alone(spectrograms, shape):
    data = spectrograms(shape, frequency_width=5, time_width=10, fill=-1.0)
    rows = torch.arange(3)
    first = data.train.fetch(rows).inputs["sound"]
    assert data.validation.fetch(rows).inputs["sound"].unique().tolist() == [1.0]
    assert first.shape == (3, *shape)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    # what is masked is whole rows and whole columns, alike in every channel
    flat = first.reshape(3, -1, 20, 50)[:, 0] == -1
    rows_masked, columns_masked = flat.all(2), flat.all(1)
    assert torch.equal(flat, rows_masked[:, :, None] | columns_masked[:, None, :])
    assert int(rows_masked.sum(1).max()) <= 10
    assert int(columns_masked.sum(1).max()) <= 20
    assert not torch.equal(data.train.fetch(rows, epoch=1).inputs["sound"], first)


def test_a_band_wider_than_the_spectrogram_is_cut(spectrograms):
    data = spectrograms((4, 6), frequency_width=1000, time_width=1000)
    assert data.train.fetch([0, 1, 2]).inputs["sound"].shape == (3, 4, 6)


@pytest.mark.parametrize(("shape", "dtype"), [((7,), np.float32), ((5, 6), np.int64)])
def test_what_is_no_spectrogram_is_told(spectrograms, shape, dtype):
    with pytest.raises(DataError, match="spec_augment needs a spectrogram of floats"):
        spectrograms(shape, dtype)
