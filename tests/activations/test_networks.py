"""Real networks, and odd ones: stored and run whole they end with the very same bits."""

from pathlib import Path

import pytest
import torch

from finetune.config.loader import load_config
from finetune.errors import FinetuneError
from finetune.train.wire import build_trainer

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.usefixtures("always")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "freeze"),
    [
        ("UNet", ["net.down1", "net.down2", "net.middle"]),
        ("UNet", ["net.down1", "net.middle"]),
        ("Twice", ["net.body"]),
        ("InPlace", ["net.body"]),
    ],
    ids=["U-Net", "U-Net with a hole", "called three times", "changed in place"],
)
def test_odd_networks_end_with_the_same_bits(runs, tmp_path, net, freeze):
    stored, _ = runs.trained(runs.odd_config(net, freeze=freeze, cache="auto"), tmp_path / "stored")
    whole, _ = runs.trained(runs.odd_config(net, freeze=freeze, cache="off"), tmp_path / "whole")
    runs.assert_same_run(stored, whole)


@pytest.mark.slow
def test_the_top_two_layers_of_minilm_end_with_the_same_bits(runs, tmp_path, texts):
    def config(prefix):
        return load_config(
            CONFIGS / "bbc_news.yaml",
            overrides=[
                f"data.source.path={texts}", "data.split={validation: 0.2}",
                'freeze=["encoder", "!encoder.encoder.layer.4", '
                '"!encoder.encoder.layer.5"]',
                "train={epochs: 3, batch_size: 8}", "optimizer.lr=1e-4", f"cache={prefix}",
            ],
        )  # fmt: skip

    stored, _ = runs.trained(config("auto"), tmp_path / "stored")
    whole, _ = runs.trained(config("off"), tmp_path / "whole")
    runs.assert_same_run(stored, whole)


@pytest.mark.slow
def test_the_last_four_blocks_of_efficientnet_end_with_the_same_bits(runs, tmp_path):
    def config(prefix):
        return load_config(
            CONFIGS / "mnist_efficientnet.yaml",
            overrides=[
                "data.split={validation: 0.01, test: 0.975, stratify: true}",
                "data.transforms.0.size=[32, 32]",
                'freeze=[{all: true}, "!network._fc", "!network._conv_head", "!network._bn1", '
                '{not: {depth: "-4:"}}]',
                "train={epochs: 3, batch_size: 16}", "optimizer.lr=1e-3", f"cache={prefix}",
            ],
            trust=["efficientnet_lite_pytorch"],
        )  # fmt: skip

    stored, _ = runs.trained(config("auto"), tmp_path / "stored")
    whole, _ = runs.trained(config("off"), tmp_path / "whole")
    runs.assert_same_run(stored, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "modules", "reason"),
    [
        ("Noisy", {}, "net.body (Noisy) is random"),
        ("Dropping", {"dropout": "train"}, "net.body.drop (Dropout) is random: modules.dropout"),
        (
            "Normed",
            {"norm": "train"},
            "net.body.norm (BatchNorm2d) moves its buffers: modules.norm",
        ),
        ("Deep", {}, "control flow depends on the data"),
        ("AcrossBatch", {}, "net.body (AcrossBatch) gives a sample other values in other company"),
    ],
    ids=["functional dropout", "dropout", "batch norm", "data-dependent depth", "across the batch"],
)
def test_what_is_not_exact_runs_every_time_and_is_named(runs, tmp_path, body, modules, reason):
    phase = {"name": "a", "train": ["net.head"], "modules": {"norm": "eval"} | modules}

    def config(prefix):
        freeze = {"phases": [phase]}
        return runs.odd_config("Headed", freeze=freeze, cache=prefix, args={"body": body}, epochs=2)

    trainer, said = runs.trained(config("auto"), tmp_path / "run")
    assert any(reason in line for line in said), said
    whole, _ = runs.trained(config("off"), tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor), name


CROP = {"transforms": [{"type": "RandomCrop", "size": [8, 8], "padding": 1}]}


def cropped(runs, prefix):
    return runs.odd_config(
        "UNet",
        freeze=["net.down1", "net.down2"],
        cache=prefix,
        epochs=5,
        data=runs.DIGITS | CROP,
    )


@pytest.mark.slow
def test_behind_a_random_crop_nothing_is_stored(runs, tmp_path):
    trainer, said = runs.trained(cropped(runs, "auto"), tmp_path / "run")
    assert any("random transforms come before it" in line for line in said), said
    assert trainer.cache.statistics.recorded == 0


@pytest.mark.slow
def test_views_store_so_many_draws_and_change_no_bit_of_a_run_with_as_many(runs, tmp_path):
    stored, _ = runs.trained(cropped(runs, {"views": 2}), tmp_path / "stored")
    whole, _ = runs.trained(cropped(runs, {"use": "off", "views": 2}), tmp_path / "whole")
    runs.assert_same_run(stored, whole)
    train, others = (
        len(stored.splits.train),
        len(stored.splits.validation) + len(stored.splits.test),
    )
    assert stored.cache.statistics.recorded == 2 * train + others
    many, _ = runs.trained(cropped(runs, "off"), tmp_path / "many")
    assert stored.progress.metrics != many.progress.metrics


def test_views_without_a_random_transform_are_refused(small_config):
    with pytest.raises(FinetuneError, match="no transform is random"):
        build_trainer(small_config(cache={"views": 2}))


def test_a_budget_that_is_too_small_is_told_and_training_goes_on(runs, tmp_path):
    freeze, small = ["net.down1", "net.down2"], {"disk_gb": 1e-6}
    stored, said = runs.trained(
        runs.odd_config("UNet", freeze=freeze, cache=small), tmp_path / "run"
    )
    whole, _ = runs.trained(runs.odd_config("UNet", freeze=freeze, cache="off"), tmp_path / "whole")
    assert any("activation cache: not stored: " in line for line in said), said
    assert stored.progress.metrics == whole.progress.metrics


@pytest.mark.slow
def test_freezing_deeper_runs_only_what_lies_between_the_borders(runs, tmp_path):
    phases = [
        {"name": "a", "freeze": ["net.down1"], "until": {"epochs": 2}},
        {"name": "b", "freeze": ["net.down1", "net.down2", "net.middle"]},
    ]

    def run(prefix, name):
        freeze = {"phases": phases}
        config = runs.odd_config("UNet", freeze=freeze, cache=prefix, epochs=4, drop_last=True)
        trainer = build_trainer(config, tmp_path / name)
        calls = []

        def called(*_):
            # evaluation, and trials of its batches, run without gradients
            if trainer.progress.phase == 1 and torch.is_grad_enabled():
                calls.append(trainer.progress.step)

        trainer.model.net.down1[0].register_forward_hook(called)
        trainer.fit()
        return trainer, len(calls)

    stored, stored_calls = run("auto", "stored")
    whole, whole_calls = run("off", "whole")
    runs.assert_same_run(stored, whole)
    assert whole_calls == 2 * stored.timeline.steps_per_epoch
    probe, trial_of_the_batch_shape = 4, 3
    # a few samples of each split, at the old boundary and at the new one
    snapshots = 2 * 3
    assert stored_calls == probe + snapshots + trial_of_the_batch_shape
