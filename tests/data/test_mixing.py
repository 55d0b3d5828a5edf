"""mixup and cutmix: what is mixed with what, by which shares, and what cannot be mixed."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import finetune
from finetune.config.data import DataConfig
from finetune.config.transform_keys import CutmixTransform, MixupTransform
from finetune.data.batches import Batch
from finetune.data.loading.mixing import Mixing
from finetune.errors import DataError, FinetuneError

SOURCE = {"type": "random", "samples": 8, "features": 4, "targets": 3}
MIXUP, CUTMIX = MixupTransform(type="mixup"), CutmixTransform(type="cutmix")


def window_of(sizes, shape=(3, 8, 6), classes=4):
    """A window cut into micro-batches of these sizes; pixels and classes are known."""
    count, draw = sum(sizes), torch.Generator().manual_seed(0)
    images = torch.randn(count, *shape, generator=draw)
    labels = torch.arange(count) % classes
    cuts = torch.arange(count).split(list(sizes))
    return [Batch({"image": images[rows]}, labels[rows], rows) for rows in cuts]


def whole(window):
    images = torch.cat([batch.inputs["image"] for batch in window])
    return images, torch.cat([batch.target for batch in window])


def test_without_mixing_a_window_is_what_it_was():
    window = window_of([4])
    assert Mixing().mixed(window, 0) is window


def test_mixup_blends_a_sample_with_the_one_before_it_and_their_targets_alike():
    window = window_of([8])
    images, labels = whole(window)
    mixed, shares = whole(Mixing((MIXUP,), 0, 4).mixed(window, 5))
    for row in range(8):
        share = shares[row, labels[row]].item()
        assert 0 <= share <= 1
        assert shares[row, labels[row - 1]].item() == pytest.approx(1 - share)
        blend = share * images[row] + (1 - share) * images[row - 1]
        torch.testing.assert_close(mixed[row], blend)


def test_cutmix_pastes_a_box_and_mixes_targets_by_its_area():
    window = window_of([16])
    images, labels = whole(window)
    mixed, shares = whole(Mixing((CUTMIX,), 0, 4).mixed(window, 2))
    pasted = 0
    for row in range(16):
        is_own = (mixed[row] == images[row]).all(0)
        is_other = (mixed[row] == images[row - 1]).all(0)
        assert bool((is_own ^ is_other).all())
        rows, columns = is_other.nonzero(as_tuple=True)
        if len(rows):
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert height * width == len(rows)
            pasted += 1
        assert shares[row, labels[row]].item() == pytest.approx(is_own.float().mean().item())
    assert pasted > 8


@pytest.mark.parametrize("nodes", [(MIXUP,), (CUTMIX,), (MIXUP, CUTMIX)], ids=len)
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 3, 2], [7, 1]], ids=str)
def test_a_window_is_mixed_alike_however_it_is_cut(nodes, sizes):
    mixing = Mixing(nodes, 3, 4)
    for step in range(4):
        at_once = whole(mixing.mixed(window_of([8]), step))
        cut = whole(mixing.mixed(window_of(sizes), step))
        assert all(torch.equal(one, other) for one, other in zip(at_once, cut, strict=True))


def test_what_is_mixed_depends_on_seed_and_step_alone():
    mixing = Mixing((MIXUP, CUTMIX), 0, 4)
    first, _ = whole(mixing.mixed(window_of([8]), 1))
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state()
    assert torch.equal(whole(mixing.mixed(window_of([8]), 1))[0], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(whole(mixing.mixed(window_of([8]), 2))[0], first)
    other = Mixing((MIXUP, CUTMIX), 1, 4)
    assert not torch.equal(whole(other.mixed(window_of([8]), 1))[0], first)


def test_each_step_draws_one_of_several_kinds():
    mixing, window = Mixing((MIXUP, CUTMIX), 0, 4), window_of([8])
    images, _ = whole(window)
    kinds = set()
    for step in range(12):
        mixed, _ = whole(mixing.mixed(window, step))
        kinds.add(bool(((mixed == images) | (mixed == images.roll(1, 0))).all()))
    assert kinds == {True, False}


def test_a_lone_sample_is_mixed_with_itself():
    images, labels = whole(window_of([1]))
    mixed, shares = whole(Mixing((MIXUP,), 0, 4).mixed(window_of([1]), 0))
    torch.testing.assert_close(mixed, images)
    torch.testing.assert_close(shares[0], torch.nn.functional.one_hot(labels[0], 4).float())


@pytest.fixture
def write_net(write_module):
    """Write a package with losses of one's own; return the name of one."""

    def write(name, soft):
        text = f"""
import torch
from torch.nn import functional as F

class Loss:
    soft_targets = {soft}
    seen = []

    def __call__(self, outputs, batch):
        self.seen.append(batch.target.shape)
        return F.cross_entropy(outputs, batch.target, reduction="none")

    loss, metrics = __call__, {{}}

def make():
    return Loss()
"""
        write_module(name, text)
        return f"{name}:make"

    return write


@pytest.fixture
def mixed_config(write_images, small_config):
    """The config of a run on images in two classes."""

    def make(*mixes, task=None, trust=(), train=None, **changes):
        source = write_images({"a": [(9, 9)] * 10, "b": [(9, 9)] * 6})
        steps = [
            {"type": "RandomHorizontalFlip"},
            {"type": "ToDtype", "dtype": "float32", "scale": True},
            *mixes,
        ]
        return small_config(
            model={"layers": [
                {"name": "flat", "type": "Flatten"},
                {"name": "body", "type": "Linear", "out_features": 5},
                {"name": "act", "type": "Tanh"},
                {"name": "head", "type": "Linear", "out_features": 2},
            ]},
            data={"source": source, "split": {"validation": 0.25}, "transforms": steps},
            task=task or {"type": "classification"},
            # The last weights: a run that ends early evaluates once more, which may be its best.
            train={"steps": 6, "batch_size": 4, "checkpoint": {"best": None}} | (train or {}),
            trust=trust,
            **changes,
        )  # fmt: skip

    return make


def weights_of(config, path):
    trainer = finetune.build_trainer(config, path)
    trainer.fit(quiet=True)
    return trainer.model.state_dict(), trainer.progress


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_run_mixes_in_training_alone_and_ends_alike_after_a_stop(mixed_config, tmp_path, mix):
    config = mixed_config({"type": mix})
    mixed, _ = weights_of(config, tmp_path / "whole")
    # In the middle of an epoch of three steps.
    cut = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    weights_of(cut, tmp_path / "cut")
    again, progress = weights_of(config, tmp_path / "cut")
    assert same(mixed, again)
    assert 0 <= progress.metrics["validation/accuracy"] <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_mixing_depends_on_no_number_of_processes(mixed_config, tmp_path, workers):
    config = mixed_config({"type": "mixup"}, {"type": "cutmix"})
    one, _ = weights_of(config, tmp_path / "one")
    data = config.data.model_copy(update={"workers": workers})
    other, _ = weights_of(config.model_copy(update={"data": data}), tmp_path / "other")
    assert same(one, other)


@pytest.mark.parametrize("soft", [True, False])
def test_a_loss_of_ones_own_says_whether_it_takes_shares_of_classes(
    mixed_config, write_net, tmp_path, soft
):
    path = write_net(f"soft_loss_{soft}".lower(), soft)
    losses = {"type": "import", "path": path}
    config = mixed_config(
        {"type": "mixup"},
        task={"type": "classification", "losses": losses},
        trust=(path.partition(":")[0],),
    )
    if soft:
        weights_of(config, tmp_path / "run")
        return
    with pytest.raises(FinetuneError, match="loss 'import' does not say that it") as caught:
        finetune.build_trainer(config, tmp_path / "run")
    assert "soft_targets = True" in caught.value.hint


@pytest.mark.parametrize("extra", [{"label_smoothing": 0.1}, {}], ids=str)
def test_cross_entropy_takes_shares_also_with_smoothing(mixed_config, tmp_path, extra):
    losses = {"type": "cross_entropy"} | extra
    weights_of(
        mixed_config({"type": "mixup"}, task={"type": "classification", "losses": losses}),
        tmp_path / "run",
    )


def test_no_rows_are_stored_where_samples_are_mixed_and_the_run_says_so(
    mixed_config, tmp_path, heard
):
    freeze = {"phases": [{"name": "head", "train": ["head"]}]}
    config = mixed_config({"type": "mixup"}, cache="auto", freeze=freeze)
    finetune.build_trainer(config, tmp_path / "run", tracker=heard).fit(quiet=True)
    line = "activation cache: not stored, 'mixup' comes before the network and mixes samples anew"
    assert any(line in said for said in heard.said)


def test_numbers_are_mixed_with_their_targets(small_config, tmp_path):
    data = {
        "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
        "transforms": [{"type": "mixup", "alpha": 1.0}],
    }
    mixed, _ = weights_of(small_config(data=data), tmp_path / "mixed")
    plain, _ = weights_of(small_config(), tmp_path / "plain")
    assert not same(mixed, plain)


def test_cutmix_needs_images(small_config, tmp_path):
    data = {"source": SOURCE, "transforms": [{"type": "cutmix"}]}
    with pytest.raises(DataError, match="cutmix needs images of one size as inputs") as caught:
        finetune.build_trainer(small_config(data=data), tmp_path / "run")
    assert caught.value.key == ("data", "transforms", 0)


def test_tokens_are_refused(write_csv, small_config, minilm, tmp_path):
    rows = [["text", "label"], *([f"a text {n}", "ab"[n % 2]] for n in range(8))]
    data = {
        "source": write_csv(rows),
        "inputs": ["text"],
        "target": "label",
        "transforms": [{"type": "tokenize", "tokenizer": minilm}, {"type": "mixup"}],
    }
    layers = [{"name": "encoder", "type": "transformers", "path": minilm},
              {"name": "head", "type": "Linear", "out_features": 2}]  # fmt: skip
    config = small_config(data=data, model={"layers": layers}, task={"type": "classification"})
    with pytest.raises(DataError, match="mixup cannot mix column 'input_ids'"):
        finetune.build_trainer(config, tmp_path / "run")


def test_mixing_comes_after_all_other_steps():
    with pytest.raises(ValidationError, match="comes after all other steps"):
        DataConfig.model_validate(
            {"source": SOURCE, "transforms": [{"type": "mixup"}, {"type": "stack"}]}
        )


def test_evaluation_mixes_nothing():
    with pytest.raises(ValidationError, match="is random"):
        DataConfig.model_validate({"source": SOURCE, "evaluation_transforms": [{"type": "mixup"}]})
