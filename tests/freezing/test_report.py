"""The freeze map as rows, as data and as a picture: what stands in it is what the plan says."""

import json

import numpy as np
import pytest
from PIL import ImageColor
from torch import nn

from finetune.config.freeze import FreezeConfig
from finetune.config.optim import OptimizerConfig
from finetune.freezing.plan import make_plan
from finetune.freezing.report import (
    changed_rows,
    joined_rows,
    plan_as_data,
    plan_rows,
    states_over_phases,
)
from finetune.models.inventory import take_inventory
from finetune.pictures.drawing import as_pixels
from finetune.pictures.freeze_map import COLOURS, FreezeMap, freeze_timeline

PHASES = [
    {"name": "head", "train": ["head"], "until": {"epochs": 1}},
    {
        "name": "norms",
        "train": ["head", {"kind": "norm"}],
        "until": {"plateau": "validation/loss", "at_most": {"steps": 9}},
        "lr": {"layer": 1e-4, "layer.1": 1e-5},
        "modules": {"norm": "train"},
        "optimizer_state": "keep",
    },
    {"name": "all", "freeze": []},
]


class Net(nn.Module):
    def __init__(self, blocks=4):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(blocks)
        )
        self.head = nn.Linear(4, 2)


def make(phases=PHASES, blocks=4, **optimizer):
    settings = OptimizerConfig.model_validate({"type": "AdamW", "lr": 1e-3, **optimizer})
    config = FreezeConfig.model_validate({"phases": phases})
    return make_plan(config, settings, take_inventory(Net(blocks)))


def test_blocks_that_fare_alike_share_a_row_with_their_sums():
    rows = joined_rows(plan_rows(make(), 0))
    assert [(r.name, r.state, r.tensors, r.trained, r.parameters) for r in rows] == [
        ("embed", "frozen", 1, 0, 28),
        ("layer.0 to 3", "frozen", 16, 0, 112),
        ("head", "trained", 2, 10, 10),
    ]


def test_blocks_of_other_rates_stand_apart():
    rows = joined_rows(plan_rows(make(), 1))
    assert [(r.name, [rate.lr for rate in r.rates]) for r in rows] == [
        ("embed", []),
        ("layer.0", [1e-4]),
        ("layer.1", [1e-5]),
        ("layer.2 to 3", [1e-4]),
        ("head", [1e-3]),
    ]


def test_a_row_tells_modes_and_decay():
    plan = make(no_decay=[{"kind": "bias"}])
    by_name = {row.name: row for row in plan_rows(plan, 1)}
    assert by_name["layer.0"].modules == "part eval"
    assert by_name["embed"].modules == "eval"
    assert by_name["head"].modules == "train"
    assert (by_name["embed"].decay, by_name["head"].decay) == ("", "mixed")
    full = {row.name: row.decay for row in plan_rows(plan, 2, full=True)}
    assert (full["head.weight"], full["head.bias"]) == ("yes", "none")


def test_frozen_norms_that_move_on_purpose_are_told():
    phases = [{"name": "head", "train": ["head"], "modules": {"norm": "train"}}]
    by_name = {row.name: row.modules for row in plan_rows(make(phases), 0)}
    assert by_name == {
        "embed": "eval",
        "head": "train",
        **{f"layer.{n}": "eval, norm train" for n in range(4)},
    }


def test_of_a_later_phase_only_what_changes_is_left():
    plan = make()
    changed = changed_rows(plan_rows(plan, 0), plan_rows(plan, 1))
    assert [row.name for row in changed] == [f"layer.{n}" for n in range(4)]
    assert changed_rows(plan_rows(plan, 1), plan_rows(plan, 1)) == []


def test_the_plan_as_data_holds_rates_triggers_and_modules_and_is_json():
    data = json.loads(json.dumps(plan_as_data(make())))
    first, norms, last = data["phases"]
    assert first["until"] == {"epochs": 1}
    assert norms["until"]["at_most"] == {"steps": 9}
    assert last["until"] is None
    modes = {"norm": "train", "trained_norm": "train", "dropout": "eval"}
    assert norms["modules"] == modes
    assert (norms["optimizer_state"], last["optimizer_state"]) == ("keep", "reset")
    states = {state["name"]: state for state in norms["states"]}
    assert states["layer.1.1.weight"]["rate"] == {"lr": 1e-5}
    assert (states["embed.weight"]["rate"], states["embed.weight"]["state"]) == (None, "frozen")
    assert [phase["trained_parameters"] for phase in data["phases"]] == [10, 42, 150]


def draw(plan, began, total_steps, now=None):
    shown = FreezeMap(
        rows=states_over_phases(plan.inventory, plan.phases[: len(began)]),
        phases=[phase.name for phase in plan.phases],
        began=began,
        total_steps=total_steps,
        now=total_steps if now is None else now,
    )
    return as_pixels(freeze_timeline(shown))


def colour_at(picture, plan_row, share):
    """Return the state whose colour the middle of a row has, at a share of the map's width."""
    found = {state: ImageColor.getrgb(colour) for state, colour in COLOURS.items()}
    left = map_left(picture)
    x, y = left + round(share * 400), 30 + 22 * plan_row + 10
    pixel = tuple(int(value) for value in picture[y, x])
    return next((state for state, colour in found.items() if colour == pixel), None)


def map_left(picture):
    """Return the first column of the map: the head's row trains from the first step."""
    trained = ImageColor.getrgb(COLOURS["trained"])
    return int(np.flatnonzero((picture[30 + 22 * 5 + 10] == trained).all(1))[0])


@pytest.mark.parametrize(
    ("row", "share", "state"),
    [
        (0, 0.1, "frozen"), (1, 0.1, "frozen"), (5, 0.1, "trained"),
        (0, 0.4, "frozen"), (1, 0.4, "mixed"), (4, 0.4, "mixed"), (5, 0.4, "trained"),
        (0, 0.8, "trained"), (1, 0.8, "trained"), (5, 0.99, "trained"),
    ],
)  # fmt: skip
def test_the_picture_has_the_colour_of_each_state_where_it_held(row, share, state):
    picture = draw(make(), [0, 20, 60], 100)
    assert colour_at(picture, row, share) == state


def test_what_is_not_yet_done_is_a_thin_line():
    picture = draw(make(), [0, 20], 100, now=40)
    left, edge = map_left(picture), 30 + 22 * 1 + 2
    assert tuple(picture[edge, left + round(0.3 * 400)]) == ImageColor.getrgb(COLOURS["mixed"])
    assert tuple(picture[edge, left + round(0.7 * 400)]) == (255, 255, 255)
    assert colour_at(picture, 1, 0.7) == "mixed"


def test_a_picture_is_bytes_of_a_size_that_fits_rows_and_phases():
    picture = draw(make(), [0], 100, now=0)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    more = draw(make(blocks=8), [0], 100, now=0)
    assert more.shape[0] - picture.shape[0] == 4 * 22


def test_very_many_blocks_that_fare_alike_share_rows_of_the_picture():
    few, many = (draw(make(PHASES[2:], blocks=n), [0], 100) for n in (4, 200))
    assert many.shape[0] < few.shape[0]


@pytest.mark.parametrize("began", [[0], [0, 1, 2], [0, 99, 100], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("total", [1, 100, 100_000])
def test_phases_of_any_length_can_be_drawn(began, total):
    began = [min(step, total) for step in began]
    assert draw(make(), began, total, began[-1]).size


def test_a_long_name_loses_its_beginning_and_widens_the_picture_no_further():
    inner, outer = Net(), nn.Module()
    outer.add_module("x" * 300, inner)
    config = FreezeConfig.model_validate({"phases": [{"name": "all", "freeze": []}]})
    plan = make_plan(config, OptimizerConfig(type="SGD", lr=1.0), take_inventory(outer))
    assert draw(plan, [0], 100).shape[1] <= 400 + 220 + 40
