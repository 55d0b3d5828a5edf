"""The phases that each method makes, against tables written by hand from the papers."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from torch import nn

from finetune.config.freeze import METHODS, Freeze, FreezeConfig, PolicyMethod
from finetune.config.optim import OptimizerConfig
from finetune.config.triggers import AfterEpochs, AtFraction, OnPlateau
from finetune.errors import SelectorError
from finetune.freezing.methods import written_out
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory

LR = 0.8


class Net(nn.Module):
    """Embeddings, four blocks with biases, norms and a bias-like table, a final norm, a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(self.block() for _ in range(4))
        self.final_norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    @staticmethod
    def block():
        table = nn.Embedding(6, 2)
        return nn.ModuleDict(
            {"relative_attention_bias": table, "fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}
        )


INVENTORY = take_inventory(Net())
ALL = {param.name for param in INVENTORY}


def below(*modules):
    return {name for name in ALL if name.startswith(tuple(f"{module}." for module in modules))}


HEAD = below("head")
EMBED = below("embed")
B0, B1, B2 = below("blocks.0"), below("blocks.1"), below("blocks.2")
B3 = below("blocks.3", "final_norm")
"""What comes behind the last block belongs to its group."""
BIASES = {name for name in ALL if name.endswith(".bias")}
NORMS = {name for name in ALL if ".norm." in name or name.startswith("final_norm")}


def phases_of(method, **more):
    settings = TypeAdapter(Freeze).validate_python({"method": method} | more)
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": LR})
    written = written_out(settings, optimizer, INVENTORY)
    assert isinstance(written, FreezeConfig)
    plan = make_plan(written, optimizer, INVENTORY)
    return written.phases, [ALL - phase.frozen for phase in plan.phases], plan.phases


def rates(phase):
    return {name: rate.lr for name, rate in phase.rates.items()}


def rate_table(*groups):
    return pytest.approx({name: lr for names, lr in groups for name in names})


TRAINED = [
    ("linear_probe", {}, [HEAD]),
    ("linear_probe", {"head": ["final_norm", "head"]}, [below("final_norm", "head")]),
    ("lp_ft", {"probe": {"epochs": 2}}, [HEAD, ALL]),
    ("gradual", {}, [HEAD, HEAD | B3, HEAD | B3 | B2, HEAD | B3 | B2 | B1, ALL - EMBED, ALL]),
    ("gradual", {"blocks_per_phase": 2}, [HEAD, HEAD | B3 | B2, ALL - EMBED, ALL]),
    ("gradual", {"blocks_per_phase": 9}, [HEAD, ALL]),
    ("ulmfit", {}, [HEAD, HEAD | B3, HEAD | B3 | B2, HEAD | B3 | B2 | B1, ALL - EMBED, ALL]),
    ("chain_thaw", {}, [HEAD, EMBED, B0, B1, B2, B3, ALL]),
    ("bitfit", {}, [BIASES | HEAD]),
    ("norm_only", {}, [NORMS | HEAD]),
    ("top_k", {"blocks": 1}, [B3 | HEAD]),
    ("top_k", {"blocks": 3}, [B1 | B2 | B3 | HEAD]),
    ("top_k", {"blocks": 5}, [ALL]),
    ("freezeout", {}, [ALL, ALL - EMBED, B1 | B2 | B3 | HEAD, B2 | B3 | HEAD, B3 | HEAD, HEAD]),
]


@pytest.mark.parametrize(
    ("method", "more", "trained"),
    TRAINED,
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_each_phase_trains(method, more, trained):
    assert phases_of(method, **more)[1] == trained


def test_bitfit_takes_no_table_that_is_only_called_a_bias():
    """BitFit's own code takes every name that contains `bias`."""
    tables = {f"blocks.{n}.relative_attention_bias.weight" for n in range(4)}
    assert tables <= ALL
    assert not tables & phases_of("bitfit")[1][0]


@pytest.mark.parametrize("method", ["linear_probe", "bitfit", "norm_only"])
def test_methods_of_one_phase_have_the_optimizers_rate_and_last_the_whole_run(method):
    (written,), _, (resolved,) = phases_of(method)
    assert written.until is None
    assert set(rates(resolved).values()) == {LR}
    assert not resolved.restarts_schedule


def test_lp_ft_fine_tunes_everything_at_a_tenth_with_fresh_state_and_a_schedule_of_its_own():
    (probe, _), _, (first, second) = phases_of("lp_ft", probe={"epochs": 2})
    assert probe.until == AfterEpochs(epochs=2)
    assert (rates(first), rates(second)) == (
        rate_table((HEAD, LR)), rate_table((ALL, LR / 10)),
    )  # fmt: skip
    assert second.optimizer_state == "fresh"
    assert first.restarts_schedule
    assert second.restarts_schedule


def test_lp_ft_goes_on_from_the_best_head_where_the_probe_ends_on_a_plateau():
    (probe, _), _, (_, second) = phases_of(
        "lp_ft", lr=0.01, probe={"plateau": "validation/loss", "at_most": {"epochs": 9}}
    )
    assert probe.restore_best
    assert rates(second) == rate_table((ALL, 0.01))


@pytest.mark.parametrize(
    ("method", "more", "last"),
    [("lp_ft", {"probe": {"epochs": 1}}, LR / 10), ("chain_thaw", {}, LR / 10),
     ("gradual", {}, LR)],
)  # fmt: skip
def test_layer_decay_acts_on_the_one_rate_of_a_method(method, more, last):
    settings = TypeAdapter(Freeze).validate_python({"method": method} | more)
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": LR, "layer_decay": 0.5})
    plan = make_plan(written_out(settings, optimizer, INVENTORY), optimizer, INVENTORY)
    found = rates(plan.phases[-1])
    assert found["head.weight"] == pytest.approx(last)
    assert found["blocks.3.fc.weight"] == pytest.approx(last / 2)
    assert found["embed.weight"] == pytest.approx(last / 32)


def test_layer_decay_leaves_the_rates_of_ulmfit_alone():
    settings = TypeAdapter(Freeze).validate_python({"method": "ulmfit"})
    decayed = OptimizerConfig.model_validate({"type": "SGD", "lr": LR, "layer_decay": 0.5})
    plan = make_plan(written_out(settings, decayed, INVENTORY), decayed, INVENTORY)
    assert rates(plan.phases[-1]) == rates(phases_of("ulmfit")[2][-1])


def test_gradual_thaws_every_epoch_and_keeps_rates_and_momentum():
    written, _, resolved = phases_of("gradual", epochs_per_phase=3)
    assert [phase.until for phase in written] == [AfterEpochs(epochs=3)] * 5 + [None]
    assert all(set(rates(phase).values()) == {LR} for phase in resolved)
    assert {phase.optimizer_state for phase in resolved} == {"keep"}
    assert not any(phase.restarts_schedule for phase in resolved)


def test_ulmfit_divides_the_rate_by_2_6_from_each_group_to_the_one_below():
    written, _, resolved = phases_of("ulmfit")
    d = 2.6
    assert rates(resolved[0]) == rate_table((HEAD, LR))
    assert rates(resolved[2]) == rate_table((HEAD, LR), (B3, LR / d), (B2, LR / d**2))
    assert rates(resolved[5]) == rate_table(
        (HEAD, LR), (B3, LR / d), (B2, LR / d**2), (B1, LR / d**3), (B0, LR / d**4),
        (EMBED, LR / d**5),
    )  # fmt: skip
    assert [phase.until for phase in written] == [AfterEpochs(epochs=1)] * 5 + [None]
    assert all(phase.restarts_schedule for phase in resolved)


def test_chain_thaw_has_a_smaller_rate_and_fresh_state_after_the_first_and_reloads_the_best():
    """DeepMoji: 1e-3 for the first entry, 1e-4 for all others, a new Adam for each."""
    written, _, resolved = phases_of("chain_thaw")
    first, *later = (set(rates(phase).values()) for phase in resolved)
    assert first == {LR}
    assert all(own == {LR / 10} for own in later)
    assert [phase.optimizer_state for phase in resolved] == ["fresh"] * 7
    plateau = OnPlateau(plateau="validation/loss", patience=2)
    assert [phase.until for phase in written] == [plateau] * 6 + [None]
    assert [phase.restores_best for phase in resolved] == [True] * 6 + [False]


def test_chain_thaw_by_epochs_goes_on_from_the_last_weights():
    _, _, resolved = phases_of("chain_thaw", until={"epochs": 2}, next_lr=0.05)
    assert not any(phase.restores_best for phase in resolved)
    assert set(rates(resolved[3]).values()) == {0.05}


@pytest.mark.parametrize(("spacing", "power"), [("linear", 1), ("squared", 2), ("cubic", 3)])
@pytest.mark.parametrize("scaled", [True, False])
def test_freezeout_anneals_each_group_to_nothing_where_it_is_frozen(spacing, power, scaled):
    """Groups 0 to 5 of FreezeOut's code: `scale(t_0 + (1 - t_0) * i / 5)`, `t_0` = 0.8."""
    written, _, resolved = phases_of("freezeout", spacing=spacing, scale_lr=scaled)
    ends = [0.8**power, 0.84**power, 0.88**power, 0.92**power, 0.96**power, 1.0]
    fractions = [phase.until.fraction for phase in written[:-1]]
    assert all(isinstance(phase.until, AtFraction) for phase in written[:-1])
    assert fractions == pytest.approx(ends[:-1])
    assert written[-1].until is None
    groups = [EMBED, B0, B1, B2, B3, HEAD]
    for number, phase in enumerate(resolved):
        for group, end in list(zip(groups, ends, strict=True))[number:]:
            for name in group:
                rate = phase.rates[name]
                assert rate.lr == pytest.approx(LR / end if scaled else LR)
                assert rate.over == pytest.approx(end)
                assert rate.schedule.type == "cosine"


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lp_ft", {"probe": {"epochs": 1}}),
        ("gradual", {}),
        ("ulmfit", {}),
        ("chain_thaw", {"until": {"epochs": 1}}),
        ("freezeout", {}),
    ],
)
def test_what_is_kept_frozen_is_frozen_in_every_phase_and_nothing_else_changes(method, more):
    _, usual, _ = phases_of(method, **more)
    _, without, plan = phases_of(method, keep_frozen=[{"kind": "norm"}, "embed"], **more)
    kept = NORMS | EMBED
    assert without == [names - kept for names in usual if names - kept]
    for names, phase in zip(without, plan, strict=True):
        assert {name for name, rate in phase.rates.items() if rate is not None} >= names


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("linear_probe", {"keep_frozen": ["embde"]}, "did you mean 'embed'"),
        (
            "norm_only",
            {"head": ["blocks.0.norm"], "keep_frozen": [{"kind": "norm"}]},
            "nothing is left",
        ),
        ("linear_probe", {"head": ["haed"]}, "did you mean 'head'"),
        ("top_k", {"blocks": 6}, "5 groups below the head, got 6"),
        ("gradual", {"head": [{"all": True}]}, "nothing is below it"),
        ("freezeout", {"head": [{"type": "Linear"}]}, "a head given by names"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(method, more, message):
    with pytest.raises(SelectorError) as caught:
        phases_of(method, **more)
    assert message in str(caught.value)
    assert caught.value.key[0] == "freeze"


RUNNABLE = [
    ({"method": "linear_probe"}, 1),
    ({"method": "lp_ft", "probe": {"epochs": 1}}, 2),
    ({"method": "gradual"}, 3),
    ({"method": "ulmfit"}, 3),
    ({"method": "chain_thaw", "until": {"epochs": 1}}, 4),
    ({"method": "chain_thaw", "until": {"plateau": "validation/loss", "patience": 1,
      "min_delta": 1e9}}, 4),
    ({"method": "bitfit"}, 1),
    ({"method": "norm_only"}, 1),
    ({"method": "top_k", "blocks": 1}, 1),
    ({"method": "freezeout"}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("freeze", "phases"), RUNNABLE, ids=str)
def test_a_run_by_the_method_passes_all_its_phases_and_the_proof(small_run, freeze, phases):
    layers = [
        {"name": "stem", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "LayerNorm"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
    trainer = small_run(
        model={"layers": layers},
        data={"source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
              "split": {"validation": 0.2}},
        freeze=freeze,
        optimizer={"type": "Adam", "lr": 0.01},
        schedule={"type": "slanted_triangular"},
        train={"epochs": 12, "batch_size": 16},
    )  # fmt: skip
    progress = trainer.fit()
    assert len(trainer.plan.phases) == phases
    assert len(progress.transitions) == phases - 1
    assert progress.step == 24
    assert all(proof["intact"] for proof in progress.proofs)


def test_every_method_has_a_row_in_each_table():
    """A method that decides while training has a file of its own."""
    policies = {name for name, node in METHODS.items() if issubclass(node, PolicyMethod)}
    files = {path.name for path in Path(__file__).parent.iterdir()}
    assert {f"test_{name}.py" for name in policies} <= files
    assert {method for method, _, _ in TRAINED} == {*METHODS} - policies
    assert {freeze["method"] for freeze, _ in RUNNABLE} == {*METHODS} - policies
