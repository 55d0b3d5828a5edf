"""The average of trained parameters is made as by hand, evaluated, kept and used."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import finetune
from finetune.cli import plans
from finetune.config.freeze import FreezeConfig
from finetune.config.optim import OptimizerConfig
from finetune.config.train import TrainConfig
from finetune.errors import FinetuneError
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory
from finetune.runs.doctor import examine
from finetune.train.after.trained import load_run
from finetune.train.average import refuse_coarse

DECAY = 0.7
SPLIT = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.2, "test": 0.2},
}
TRAIN = {
    "steps": 8,
    "batch_size": 6,
    "log_every": 1,
    "evaluate_every": {"steps": 2},
    "checkpoint": {"every": {"steps": 1}, "keep_last": 99},
}
AVERAGED = TRAIN | {"average": {"decay": DECAY}}
ROWS = {"phases": [{"name": "a", "freeze": ["body", {"rows": "head.weight[:1]"}]}]}
THAWS = {
    "phases": [
        {"name": "one", "train": ["head"], "until": {"steps": 3}},
        {"name": "two", "freeze": [], "until": {"steps": 3}},
        {"name": "three", "train": ["body"]},
    ]
}
LISA = {"method": "lisa", "period": 2, "blocks": 1, "head": ["last"]}
BLOCKS = {
    "layers": [
        {"name": f"block{n}", "type": "Linear", "out_features": 4} for n in range(3)
    ] + [{"name": "last", "type": "Linear", "out_features": 3}]
}  # fmt: skip


def kept(trainer, step, file="weights"):
    return load_file(trainer.saver.checkpoints.path_of(step) / f"{file}.safetensors")


def has_unaveraged(trainer, step):
    return (trainer.saver.checkpoints.path_of(step) / "unaveraged.safetensors").exists()


@pytest.fixture
def pair(small_run):
    """Train without and with an average; return both trainers and the first weights."""

    def train(train=AVERAGED, **sections):
        sections = {"data": SPLIT} | sections
        bare = {key: value for key, value in train.items() if key != "average"}
        raw, averaged = (
            small_run("raw", train=bare, **sections),
            small_run("averaged", train=train, **sections),
        )
        first = {name: p.detach().clone() for name, p in raw.model.named_parameters()}
        raw.fit(quiet=True)
        averaged.fit(quiet=True)
        return raw, averaged, first

    return train


def by_hand(raw, trained_at, first, steps=8):
    """Average the weights that a run without an average has kept, as a loop by hand would."""
    average, found = {}, {}
    before = first
    for step in range(1, steps + 1):
        names = trained_at(step)
        average = {name: average[name] if name in average else of(before, name) for name in names}
        weights = kept(raw, step)
        for name in names:
            average[name] = average[name].lerp(weights[name], 1 - DECAY)
        found[step] = dict(average)
        before = before | weights
    return found


def of(tensors, name):
    if name in tensors:
        return tensors[name].clone()
    parameter, _, rows = name.partition("[")
    start, stop = rows.rstrip("]").split(":")
    return tensors[parameter][int(start) : int(stop)].clone()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("sections", "trained_at"),
    [
        ({}, lambda step: ["body.bias", "body.weight", "head.bias", "head.weight"]),
        ({"freeze": ROWS}, lambda step: ["head.bias", "head.weight[1:3]"]),
        (
            {"freeze": THAWS},
            lambda step: [
                *(["head.bias", "head.weight"] if step <= 6 else []),
                *(["body.bias", "body.weight"] if step > 3 else []),
            ],
        ),
        (
            {"train": AVERAGED | {"micro_batch": 2}},
            lambda step: ["body.bias", "body.weight", "head.bias", "head.weight"],
        ),
    ],
    ids=["all", "rows", "phases", "micro-batches"],
)
def test_every_checkpoint_holds_the_average_of_a_loop_by_hand(pair, sections, trained_at):
    raw, averaged, first = pair(**sections)
    expected = by_hand(raw, trained_at, first)
    for step in range(1, 9):
        in_use, as_trained = kept(averaged, step), kept(averaged, step, "unaveraged")
        assert as_trained.keys() == set(trained_at(step))
        assert_equal(expected[step], {name: in_use[name] for name in as_trained})
        # training itself goes on as without an average
        assert_equal(kept(raw, step), in_use | as_trained)


def test_each_draw_of_lisa_begins_the_averages_of_its_blocks(pair):
    raw, averaged, first = pair(model=BLOCKS, freeze=LISA)
    masks = averaged.progress.masks

    def trained_at(step):
        blocks = [f"block{n}" for n in masks[(step - 1) // 2]]
        return [f"{layer}.{kind}" for layer in (*blocks, "last") for kind in ("bias", "weight")]

    assert len({tuple(mask) for mask in masks}) > 1
    expected = by_hand(raw, trained_at, first)
    for step in range(1, 9):
        in_use, as_trained = kept(averaged, step), kept(averaged, step, "unaveraged")
        assert_equal(expected[step], {name: in_use[name] for name in as_trained})
        assert_equal(kept(raw, step), in_use | as_trained)


def test_the_averaged_weights_are_those_that_are_evaluated_watched_tested_and_predict(
    small_run, tmp_path
):
    averaged = small_run("averaged", data=SPLIT, train=AVERAGED)
    averaged.fit(quiet=True)
    lines = [json.loads(line) for line in averaged.folder.metrics.read_text().splitlines()]
    told = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    bare = small_run("bare", data=SPLIT, train=TRAIN)
    for step, loss in told.items():
        bare.model.load_state_dict(kept(averaged, step), strict=False)
        assert bare.evaluate(bare.splits.validation)["loss"] == loss
    best = averaged.progress.best.step
    assert told[best] == min(told.values())
    used = load_run(tmp_path / "averaged").model.state_dict()
    assert_equal(used, kept(averaged, best))
    assert_equal(used, averaged.model.state_dict())
    assert not torch.equal(used["head.weight"], kept(averaged, best, "unaveraged")["head.weight"])
    test = next(line["test/loss"] for line in lines if "test/loss" in line)
    assert test == finetune.evaluate(tmp_path / "averaged", "test")["loss"]


def test_an_evaluation_changes_no_bit_of_weights_and_averages(small_run):
    trainer = small_run(data=SPLIT, train=AVERAGED)
    trainer.average.begin_phase(trainer.timeline.phase.rates)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    trainer.average.update()
    weights = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    averages = {name: t.clone() for name, t in trainer.average.tensors.items()}
    trainer.evaluate(trainer.splits.validation)
    assert_equal(weights, trainer.model.state_dict())
    assert_equal(averages, trainer.average.tensors)

    def fails():
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), trainer.average.in_use():
        fails()
    assert_equal(weights, trainer.model.state_dict())
    assert_equal(averages, trainer.average.tensors)


def test_without_a_best_metric_the_last_averages_are_tested_and_used(small_run, tmp_path):
    train = AVERAGED | {"checkpoint": {"every": {"steps": 1}, "keep_last": 99, "best": None}}
    trainer = small_run(data=SPLIT, train=train)
    trainer.fit(quiet=True)
    assert_equal(trainer.model.state_dict(), kept(trainer, 8))
    again = small_run(data=SPLIT, train=train)  # already done
    again.fit(quiet=True)
    assert_equal(again.model.state_dict(), kept(trainer, 8))
    assert_equal(load_run(tmp_path / "run").model.state_dict(), kept(trainer, 8))


def test_a_phase_that_restores_its_best_goes_on_from_the_averages_of_its_best(small_run):
    phases = [
        {"name": "one", "freeze": [], "until": {"steps": 6}, "restore_best": True},
        {"name": "two", "train": ["head"]},
    ]
    ruinous = {"type": "SGD", "lr": 3.0, "momentum": 0.9}
    trainer = small_run(
        data=SPLIT, train=AVERAGED, freeze={"phases": phases}, optimizer=ruinous, cache="off"
    )
    trainer.fit(quiet=True)
    best = trainer.progress.ranking[0][0]
    assert best < 6
    begun = kept(trainer, 6)
    assert_equal(begun, kept(trainer, best))
    assert_equal(
        {n: begun[n] for n in kept(trainer, 6, "unaveraged")}, kept(trainer, 6, "unaveraged")
    )
    # what is frozen afterwards is used as it is
    assert kept(trainer, 7, "unaveraged").keys() == {"head.bias", "head.weight"}
    assert torch.equal(kept(trainer, 8)["body.weight"], begun["body.weight"])


def test_a_phase_whose_last_step_is_its_best_goes_on_from_the_averages_too(small_run):
    phases = [
        {"name": "one", "freeze": [], "until": {"steps": 6}, "restore_best": True},
        {"name": "two", "train": ["head"]},
    ]
    trainer = small_run(data=SPLIT, train=AVERAGED, freeze={"phases": phases}, cache="off")
    trainer.fit(quiet=True)
    assert trainer.progress.ranking[0][0] >= 6
    begun = kept(trainer, 6)
    assert_equal(begun, kept(trainer, 6, "unaveraged"))
    assert torch.equal(kept(trainer, 8)["body.weight"], begun["body.weight"])


def test_a_checkpoint_names_what_its_weights_are(small_run, tmp_path):
    trainer = small_run(data=SPLIT, train=AVERAGED)
    trainer.fit(quiet=True)
    bare = small_run("bare", data=SPLIT, train=TRAIN)
    bare.fit(quiet=True)
    holds = {"holds": "averages of the trained parameters"}
    for one, about in ((trainer, holds), (bare, None)):
        path = one.saver.checkpoints.path_of(8) / "weights.safetensors"
        with safe_open(path, "pt") as file:
            assert file.metadata() == about
    assert not has_unaveraged(bare, 8)
    texts = [finding.text for finding in examine(tmp_path / "run").findings]
    best = trainer.progress.best.step
    assert f"with step-{best:08d}, averaged weights" in texts
    assert examine(tmp_path / "run").is_sound


def test_plan_and_train_say_that_weights_are_averaged(small_config, tmp_path, capsys, small_run):
    trainer = small_run(data=SPLIT, train=AVERAGED)
    trainer.fit()
    told = capsys.readouterr().err
    assert "used: the averaged weights with the best validation/mae" in told
    best = trainer.progress.best.step
    assert f"the averaged weights of step {best}, the best by validation/mae" in told
    shown = plans.preview(small_config(data=SPLIT, train=AVERAGED))
    assert "averaged with decay 0.7" in plans._run(shown)


def test_an_average_in_16_bits_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    optimizer = OptimizerConfig(type="SGD", lr=0.1)
    settings = TrainConfig.model_validate({"epochs": 1, "average": {}})
    inventory = take_inventory(model)
    with pytest.raises(FinetuneError, match="stand still in bfloat16, the format of '1"):
        refuse_coarse(make_plan(None, optimizer, inventory), settings)
    # a network of which only the rest trains may have it

    frozen = FreezeConfig.model_validate({"phases": [{"name": "a", "freeze": [{"name": "1"}]}]})
    refuse_coarse(make_plan(frozen, optimizer, inventory), settings)


def test_an_average_on_a_run_that_had_none_is_refused(small_run):
    small_run(data=SPLIT, train=TRAIN).fit(quiet=True)
    with pytest.raises(FinetuneError, match="holds a run of another config") as error:
        small_run(data=SPLIT, train=AVERAGED)
    assert "train.average.decay: None there, 0.7 now" in str(error.value)
