"""`finetune plan`: what a person reads before a run, and the long form that it writes."""

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from finetune.freezing.report import PlanRow
from finetune.optim.rates import PeakRate
from finetune.train.shown.phase_table import _phase_table

BLOCKS = {
    "model": {
        "layers": [
            {"name": "first", "type": "Linear", "out_features": 8},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "second", "type": "Linear", "out_features": 8},
            {"name": "relu", "type": "ReLU"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "optimizer": {"type": "AdamW", "lr": 0.01, "no_decay": [{"kind": "bias"}]},
}
METHODS = {
    "linear_probe": {"method": "linear_probe"},
    "lp_ft": {"method": "lp_ft", "probe": {"epochs": 2}},
    "lp_ft_plateau": {
        "method": "lp_ft",
        "probe": {"plateau": "validation/loss", "at_most": {"steps": 9}},
    },
    "gradual": {"method": "gradual"},
    "ulmfit": {"method": "ulmfit", "blocks_per_phase": 2},
    "chain_thaw": {"method": "chain_thaw", "until": {"epochs": 1}},
    "bitfit": {"method": "bitfit"},
    "norm_only": {"method": "norm_only"},
    "top_k": {"method": "top_k", "blocks": 1},
    "freezeout": {"method": "freezeout"},
}  # fmt: skip
THREE = {
    "phases": [
        {"name": "probe", "train": ["head"], "until": {"epochs": 2}},
        {
            "name": "middle",
            "freeze": ["first"],
            "until": {"plateau": "validation/loss", "patience": 3, "at_most": {"steps": 6}},
            "lr": {"norm": 1e-4},
            "schedule": "per_phase",
            "optimizer_state": "keep",
        },
        {"name": "all", "freeze": [], "restore_best": True},
    ]
}


@pytest.fixture
def blocks(write, points, config):
    """Write `blocks.yaml`, a network of several parts, with the freezing asked for."""

    def make(freeze=None):
        given = {} if freeze is None else {"freeze": freeze}
        return write("blocks.yaml", config | BLOCKS | given)

    return make


def lines(outcome):
    assert outcome.code == 0, outcome.err
    return [re.sub(r" +", " ", line).strip() for line in outcome.out.splitlines()]


def test_a_plan_shows_state_rate_decay_and_modes_of_each_part(finetune, blocks):
    blocks(["first", "norm"])
    shown = lines(finetune("plan", "blocks.yaml"))
    assert "weights none loaded: all values are random" in shown
    assert "first frozen eval 2 24" in shown
    assert "second trained 0.01 0.01 or none train 2 72" in shown
    assert "trained 90 of 130 parameters (69.23%)" in shown
    assert "steps 0 to 24: lasts to the end of the run; schedule of the whole run" in shown


def test_of_later_phases_a_plan_shows_how_they_end_and_what_they_change(finetune, blocks):
    blocks(THREE)
    shown = lines(finetune("plan", "blocks.yaml"))
    start, end = shown.index("phase 1: middle"), shown.index("phase 2: all")
    assert shown[start + 1] == (
        "over by step 12: lasts until validation/loss has not improved in 3 evaluations, at most "
        "6 steps; schedule anew; momentum kept"
    )
    assert [line.split()[0] for line in shown[start + 4 : end - 3]] == ["norm", "second"]
    assert shown[end - 3] == "all else as in phase 0"
    assert "goes back to its best weights" in shown[end + 1]


def test_a_plan_shows_costs_next_to_full_training(finetune, blocks, monkeypatch):
    monkeypatch.setattr("finetune.activations.estimate._WORTH_TRYING", 0)
    blocks(THREE)
    shown = lines(finetune("plan", "blocks.yaml"))
    full = [line for line in shown if line.startswith("full training ")]
    last = [line for line in shown if line.startswith("2: all ")]
    assert len(full) == 2
    assert [line.removeprefix("2: all ") for line in last] == [
        line.removeprefix("full training ") for line in full
    ]
    probe, _ = [line for line in shown if line.startswith("0: probe ")]
    of_full, with_store = map(float, re.findall(r"([\d.]+)%", probe))
    assert with_store < of_full < 50


def test_a_plan_tells_what_storing_the_prefix_saves(finetune, blocks, monkeypatch):
    monkeypatch.setattr("finetune.activations.estimate._WORTH_TRYING", 0)
    blocks(THREE)
    shown = lines(finetune("plan", "blocks.yaml"))
    (probe,) = [line for line in shown if line.startswith("0: probe: ")]
    where, often = probe.split("; ")
    assert re.fullmatch(r"0: probe: the prefix ends with \w+, [\d.]+% of a forward pass", where)
    assert often.startswith("each sample is seen 2 times")
    assert "2: all: nothing is frozen" in shown
    phase = json.loads(finetune("plan", "blocks.yaml", "--json").out)["phases"][0]
    assert phase["costs"]["storing"]["flops_per_step"] < phase["costs"]["flops_per_step"]


def test_a_plan_tells_which_prefixes_are_stored_on_the_way(finetune, blocks, always):
    blocks(THREE)
    shown = lines(finetune("plan", "blocks.yaml"))
    notes = [line for line in shown if "the prefix ends with" in line]
    assert [("stored on the way before" in note) for note in notes] == [False, True]


def test_a_plan_of_a_method_names_it(finetune, blocks):
    blocks(METHODS["ulmfit"])
    assert re.search(r"^method +ulmfit: Gradual thawing", finetune("plan", "blocks.yaml").out, re.M)


@pytest.mark.parametrize(
    ("width", "tensors", "names"),
    [
        (120, True, ["encoder.encoder.layer.0 to 5", "head"]),
        (80, False, ["encoder.encoder.layer.0 to 5", "head"]),
        (70, False, ["encoder.encoder", ".layer.0 to 5", "head"]),
    ],
)
def test_a_table_fits_a_narrow_terminal_and_breaks_names_at_their_dots_alone(width, tensors, names):
    rate = (PeakRate(3.85e-4),)
    rows = [
        PlanRow("encoder.encoder.layer.0 to 5", "trained", rate, "yes", "train", 96, 10**7, 10**7),
        PlanRow("head", "trained", rate, "yes", "train", 2, 1925, 1925),
    ]
    console = Console(file=io.StringIO(), width=width)
    console.print(_phase_table(rows, 0.01, width))
    shown = console.file.getvalue().splitlines()
    assert max(map(len, shown)) <= width
    assert ("tensors" in shown[0]) == tensors
    assert [re.split("  +", line)[0].strip() for line in shown[2:]] == names


def test_a_lint_is_a_note_with_file_and_line_and_no_error(finetune, blocks):
    path = blocks(["second", "second.weight", {"all": True}, "!head"])
    outcome = finetune("plan", "blocks.yaml")
    assert outcome.code == 0
    number = path.read_text().splitlines().index("- second") + 1
    wanted = f"note blocks.yaml:{number}: freeze.0: 'second' has no effect"
    assert any(line.startswith(wanted) for line in lines(outcome))


def test_json_holds_phases_with_costs_totals_and_lints(finetune, blocks):
    blocks({"phases": [{"name": "only", "freeze": ["first", "first"]}]})
    outcome = finetune("plan", "blocks.yaml", "--json")
    document = json.loads(outcome.out)
    (phase,) = document["phases"]
    assert phase["costs"]["flops_per_step"] < document["full_training"]["costs"]["flops_per_step"]
    assert phase["span"] == {"began": 0, "ends": 24, "is_certain": True}
    assert document["total_steps"] == 24
    (lint,) = document["lints"]
    assert re.match(r"blocks\.yaml:\d+: freeze\.phases\.0\.freeze\.0$", lint["where"])


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [*METHODS.values(), THREE, ["first"], None], ids=str)
def test_the_long_form_loads_again_and_gives_the_same_plan(finetune, blocks, freeze):
    blocks(freeze)
    first = finetune("plan", "blocks.yaml", "--json", "--write", "long.yaml")
    assert first.code == 0, first.err
    assert "phases" in yaml.safe_load(Path("long.yaml").read_text())["freeze"]
    again = finetune("plan", "long.yaml", "--json")
    assert again.code == 0, again.err
    documents = [json.loads(outcome.out) for outcome in (first, again)]
    for document in documents:
        document.pop("lints")
    assert documents[0] == documents[1]


def test_a_long_form_never_replaces_a_file(finetune, blocks, write):
    blocks()
    write("long.yaml", "precious")
    outcome = finetune("plan", "blocks.yaml", "--write", "long.yaml")
    assert outcome.code == 2
    assert outcome.err.startswith("long.yaml: is there already")
    assert Path("long.yaml").read_text() == "precious"


def test_a_plan_takes_no_step_and_writes_nothing(finetune, blocks):
    blocks(THREE)
    before = sorted(Path().rglob("*"))
    assert finetune("plan", "blocks.yaml").code == 0
    assert sorted(Path().rglob("*")) == before


def test_the_plan_that_a_run_stores_is_the_one_that_was_shown(finetune, blocks):
    blocks(THREE)
    shown = json.loads(finetune("plan", "blocks.yaml", "--json").out)
    assert finetune("train", "blocks.yaml").code == 0
    stored = json.loads(Path("runs/blocks/plan.json").read_text())
    # Which figure the run is judged by, and which way it improves.
    assert {*stored.pop("figures")} == {"main", "better"}
    for phase in shown["phases"]:
        phase.pop("costs")
        phase.pop("span")
    assert stored == {key: shown[key] for key in stored}
