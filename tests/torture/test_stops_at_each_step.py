"""Runs with averages, rates that fall, and held norms go on exactly from every step."""

import pytest

AVERAGE = {"decay": 0.8}
BLOCKS = {
    "layers": [
        {"name": f"block{n}", "type": "Linear", "out_features": 6} for n in range(3)
    ] + [{"name": "head", "type": "Linear", "out_features": 3}]
}  # fmt: skip
PHASES = {
    "modules": {"trained_norm": "eval"},
    "phases": [
        {"name": "head", "train": ["head"], "until": {"steps": 5}, "restore_best": True},
        {"name": "rows", "freeze": [{"rows": "body.weight[:2]"}], "until": {"steps": 5}},
        {"name": "body", "train": ["body", "norm"]},
    ],
}
LISA = {"method": "lisa", "period": 3, "blocks": 1, "head": ["head"]}
FALLS = {"type": "plateau", "min_delta": 9.0, "patience": 1, "factor": 0.7}
RUNS = {
    "average, phases and plateau": {
        "freeze": PHASES,
        "schedule": FALLS | {"warmup": {"steps": 3}},
        "train": {"average": AVERAGE},
    },
    "average and lisa": {
        "model": BLOCKS,
        "freeze": LISA,
        "schedule": {"type": "step", "every": {"epochs": 1}, "warmup": {"epochs": 1}},
        "train": {"average": AVERAGE},
    },
    "plateau of each phase": {
        "freeze": {
            "phases": [
                {"name": "one", "train": ["head"], "until": {"steps": 7}, "schedule": "per_phase"},
                {"name": "two", "freeze": ["norm"], "schedule": "per_phase"},
            ]
        },
        "schedule": FALLS,
    },
    "at": {"schedule": {"type": "step", "at": {"epochs": [1, 2]}}},
    "restarts": {"schedule": {"type": "cosine", "restarts": 2, "growth": 2.0, "warmup": 0.2}},
    "polynomial": {"schedule": {"type": "polynomial", "power": 3.0}},
    "exponential": {"schedule": {"type": "exponential", "decay": 0.5, "warmup": {"steps": 2}}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *list(RUNS)[:1],
        *(pytest.param(name, marks=pytest.mark.slow) for name in list(RUNS)[1:]),
    ],
)
def test_a_run_goes_on_exactly_from_each_step(written, stops_of, name):
    saves = {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}
    sections = RUNS[name]
    train = {"steps": 13} | saves | sections.get("train", {})
    tracking = {"to": [], "report": False}  # half the time of a run that ends after a few steps
    config = written(**(sections | {"train": train, "tracking": tracking}))
    seen = stops_of(config)
    assert seen["steps"] == list(range(1, 14))
    assert seen["otherwise"] == []
