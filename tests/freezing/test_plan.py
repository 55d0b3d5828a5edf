"""A plan resolves every phase before a step is taken, and tells all that is wrong at once."""

import pytest
import torch
from torch import nn

from finetune.config.freeze import FreezeConfig
from finetune.config.loader import load_config
from finetune.config.optim import OptimizerConfig
from finetune.errors import ConfigError, FinetuneError, SeveralFaultsError
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory
from finetune.train.wire import build_trainer


def make_net():
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4),
            "layer": nn.ModuleList(nn.Linear(4, 4) for _ in range(4)),
            "head": nn.Linear(4, 2),
        }
    )


def plan_for(*phases, model=None, **more):
    config = FreezeConfig.model_validate({"phases": phases, **more})
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": 0.1})
    return make_plan(config, optimizer, take_inventory(model or make_net()))


def until(name, *frozen, steps=1, **more):
    return {"name": name, "freeze": list(frozen), "until": {"steps": steps}} | more


EVERY = {name for name, _ in make_net().named_parameters()}
HEAD = {"head.weight", "head.bias"}


def test_train_and_freeze_are_complements():
    trained, frozen = plan_for(
        {"name": "one", "train": ["head"], "until": {"steps": 1}},
        {"name": "two", "freeze": ["head"]},
    ).phases
    assert trained.frozen == EVERY - HEAD
    assert frozen.frozen == HEAD


def test_without_freeze_everything_trains_in_one_phase():
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": 0.1})
    plan = make_plan(None, optimizer, take_inventory(make_net()))
    assert [phase.frozen for phase in plan.phases] == [frozenset()]
    assert set(plan.ever_trained) == EVERY


def test_ever_trained_is_what_some_phase_trains_in_the_models_order():
    plan = plan_for(until("one", "*", "!head"), {"name": "two", "train": ["layer.1", "layer.3"]})
    assert plan.ever_trained == (
        "layer.1.weight", "layer.1.bias", "layer.3.weight", "layer.3.bias",
        "head.weight", "head.bias",
    )  # fmt: skip
    assert plan.trained_from(1) == set(plan.ever_trained) - HEAD


def test_parameters_of_whole_numbers_are_frozen_in_every_phase():
    model = make_net()
    codes = torch.zeros(3, dtype=torch.int8)
    model.register_parameter("codes", nn.Parameter(codes, requires_grad=False))
    plan = plan_for(until("one", "embed"), {"name": "two", "train": [{"all": True}]}, model=model)
    assert all("codes" in phase.frozen for phase in plan.phases)
    assert "codes" not in plan.ever_trained


def test_a_phase_has_its_own_modules_or_those_of_all():
    plan = plan_for(
        until("one", "head"),
        {"name": "two", "freeze": ["head"], "modules": {"dropout": "train"}},
        modules={"norm": "train"},
    )
    assert [(p.modules.norm, p.modules.dropout) for p in plan.phases] == [
        ("train", "eval"), ("eval", "train"),
    ]  # fmt: skip


def test_rows_are_cut_alike_in_all_phases():
    plan = plan_for(
        until("one", {"rows": "embed.weight[:2]"}), {"name": "two", "freeze": ["embed", "head"]}
    )
    assert {"embed.weight[0:2]", "embed.weight[2:7]"} <= {p.name for p in plan.inventory}
    assert plan.phases[0].frozen == {"embed.weight[0:2]"}
    assert {"embed.weight[0:2]", "embed.weight[2:7]", "embed.weight"} <= plan.phases[1].frozen


def test_every_fault_of_every_phase_is_told_with_its_place():
    with pytest.raises(SeveralFaultsError) as caught:
        plan_for(
            until("one", "hed"),
            {"name": "two", "freeze": ["*"], "until": {"steps": 1}},
            {"name": "three", "train": [{"depth": "4:"}], "lr": {"hed": 1}, "until": {"steps": 1}},
            until("four", {"rows": "embd.weight[:2]"}, {"rows": "embed.weight[9:]"}),
            {"name": "five", "freeze": ["embed"], "lr": {"embed": 0.1}},
        )
    told = [(error.key[2:], str(error).splitlines()[0]) for error in caught.value.errors]
    assert [(key, text.partition(":")[0][:40]) for key, text in told] == [
        ((0, "freeze", 0), "'hed' takes no parameter"),
        ((1, "freeze"), "phase 'two' trains nothing"),
        ((2, "train", 0), "{depth"),
        ((2, "lr", "hed", 0), "'hed' takes no parameter"),
        ((3, "freeze", 0), "rows of 'embd.weight'"),
        ((3, "freeze", 1), "'embed.weight[9"),
        ((4, "lr", "embed"), "a rate for 'embed', which phase 'five' h"),
    ]


BASE = """\
model:
  layers:
    - {name: body, type: Linear, out_features: 6}
    - {name: act, type: Tanh}
    - {name: head, type: Linear, out_features: 3}
data:
  source: {type: random, samples: 40, features: 4, targets: 3}
  split: {validation: 0.25}
task: {type: regression}
optimizer: {type: SGD, lr: 0.1}
train: {steps: 10, batch_size: 8}
"""


@pytest.fixture
def told(tmp_path):
    """Return what a config is told, a line each: place below the file, key and message."""

    def tell(text, base=BASE, trust=()):
        path = tmp_path / "run.yaml"
        path.write_text(base + text)
        with pytest.raises(FinetuneError) as caught:
            build_trainer(load_config(path, trust=trust), tmp_path / "run")
        assert not (tmp_path / "run").exists(), "nothing is begun"
        lines = [line for line in str(caught.value).splitlines() if not line.startswith("    ")]
        assert all(line.startswith(f"{path}:") for line in lines), lines
        return [line.removeprefix(f"{path}:") for line in lines]

    return tell


LINE_OF_PHASES = BASE.count("\n") + 2


def test_faults_of_the_schema_are_told_all_at_once_with_their_lines(told):
    lines = told(
        """\
freeze:
  phases:
    - {name: one, freze: [body], until: {steps: 2}}
    - {name: two, freeze: [body], until: {steps: 2, epochs: 1}}
    - {name: three, freeze: [body], train: [head], until: {steps: 2}}
    - {name: four, freeze: [body], until: {plateu: validation/loss}}
    - {name: four, freeze: [body], optimizer_state: kept, restore_bset: true}
"""
    )
    begins = LINE_OF_PHASES + 1
    one_trigger = "needs exactly one of epochs, steps, fraction, plateau"
    wanted = {
        f"{begins}: freeze.phases.0.freze: unknown key",
        f"{begins}: freeze.phases.0: needs exactly one of 'freeze' and 'train', got neither",
        f"{begins + 1}: freeze.phases.1.until: {one_trigger}",
        f"{begins + 2}: freeze.phases.2: needs exactly one of 'freeze' and 'train', got both",
        f"{begins + 3}: freeze.phases.3.until: {one_trigger}",
        f"{begins + 4}: freeze.phases.4.name: a second phase named 'four'",
        f"{begins + 4}: freeze.phases.4.optimizer_state: ",
        f"{begins + 4}: freeze.phases.4.restore_bset: unknown key",
    }
    for text in wanted:
        assert sum(line.startswith(text) for line in lines) == 1, (text, lines)
    assert len(lines) == len(wanted), lines


def test_faults_of_selectors_triggers_and_rates_are_told_all_at_once_with_their_lines(told):
    lines = told(
        """\
freeze:
  phases:
    - {name: one, train: [haed], until: {plateau: validation/accuracy, at_most: {steps: 2}}}
    - {name: two, freeze: [{all: true}], until: {steps: 2}}
    - {name: three, freeze: [{depth: 7}], until: {steps: 2}}
    - name: four
      freeze: [{rows: "bdy.weight[:2]"}]
      until: {steps: 1}
    - {name: five, freeze: [body], lr: {body: 0.1}, restore_best: true, until: {plateau: test/loss}}
    - {name: six, freeze: [body]}
"""
    )
    begins = LINE_OF_PHASES + 1
    wanted = [
        f"{begins}: freeze.phases.0.train.0: 'haed' takes no parameter",
        f"{begins}: freeze.phases.0.until: no metric 'validation/accuracy' is ever logged; "
        "there are: validation/loss, validation/mae",
        f"{begins + 1}: freeze.phases.1.freeze: phase 'two' trains nothing",
        f"{begins + 2}: freeze.phases.2.freeze.0",
        f"{begins + 4}: freeze.phases.3.freeze.0: rows of 'bdy.weight': no such parameter",
        f"{begins + 6}: freeze.phases.4.lr.body: a rate for 'body', which phase 'five'",
        f"{begins + 6}: freeze.phases.4.until: no metric 'test/loss' is ever logged",
    ]
    for text in wanted:
        assert sum(line.startswith(text) for line in lines) == 1, (text, lines)
    assert len(lines) == len(wanted), lines


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (["{name: one, freeze: [body], until: {fraction: 0.5}}",
          "{name: two, freeze: [head], until: {fraction: 0.4}}",
          "{name: three, freeze: []}"],
         "phases.1.until: phase 'two' is over before it begins, at step 5"),
        (["{name: one, freeze: [body], until: {steps: 10}}", "{name: two, freeze: [head]}"],
         "phases.1: phase 'two' never begins: the run is over after 10 steps"),
        (["{name: one, freeze: [body], until: {epochs: 9}}", "{name: two, freeze: [head]}"],
         "phases.1: phase 'two' never begins"),
        (["{name: one, freeze: [body], schedule: per_phase, until: {plateau: validation/loss}}",
          "{name: two, freeze: [head]}"],
         "phases.0.until: a schedule of its own needs a length: add 'at_most' to the plateau"),
        (["{name: one, freeze: [body], restore_best: true, until: {plateau: validation/rmse}}",
          "{name: two, freeze: [head]}"],
         "phases.0.until: no metric 'validation/rmse' is ever logged"),
    ],
    ids=["fraction out of order", "never begins by steps", "never begins by epochs",
         "schedule without an end", "metric never logged"],
)  # fmt: skip
def test_phases_that_cannot_be_are_refused_in_one_line(told, phases, message):
    text = "freeze:\n  phases:\n" + "".join(f"    - {phase}\n" for phase in phases)
    (line,) = told(text)
    assert f"freeze.{message}" in line


def test_a_plateau_without_validation_samples_is_refused(told):
    (line,) = told(
        "freeze:\n  phases:\n    - {name: one, freeze: [body], until: {plateau: validation/loss}}\n"
        "    - {name: two, freeze: [head]}\n",
        base=BASE.replace("  split: {validation: 0.25}\n", ""),
    )
    assert line.endswith("there are: none, for there are no validation samples")


def test_opposite_wishes_on_a_tied_tensor_are_told_with_the_line(told, monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)
    tied = BASE.replace(
        "- {name: body, type: Linear, out_features: 6}",
        '- {name: body, type: import, path: "trap_nets:Tied"}',
    )
    text = "freeze:\n  phases:\n    - {name: one, freeze: [body.up, '!body.shared']}\n"
    (line,) = told(text, base=tied, trust=["trap_nets"])
    assert line.startswith(f"{LINE_OF_PHASES + 1}: freeze.phases.0.freeze.1: ")
    assert "'body.up.weight'" in line
    assert "'body.shared.weight'" in line
    assert "one tied tensor" in line


def test_faults_of_a_method_are_told_with_the_line(told):
    (line,) = told("freeze: {method: top_k, blocks: 9}\n")
    assert line.startswith(f"{LINE_OF_PHASES - 1}: freeze.blocks: the model has 1 groups below")


def test_unknown_methods_are_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "freeze: {method: gradul}\n")
    with pytest.raises(ConfigError, match="gradual"):
        load_config(path)
