"""A file that says a thing in another way than its base replaces what the base said."""

import pytest

from finetune.config.loader import load_config
from finetune.errors import ConfigError

BASE = """
seed: 0
model: {{layers: [{{name: head, type: Linear, out_features: classes}}]}}
task: {{type: classification}}
data: {data}
optimizer: {{type: Adam, lr: 0.1}}
schedule: {schedule}
freeze: {freeze}
train: {{epochs: 2, batch_size: 8}}
"""
SOURCE = "{type: csv, path: d.csv}"
SPLIT = "{test: 0.2, validation: 0.1, stratify: true, seed: 3}"
STEP = "{type: step, every: {steps: 3}, factor: 0.5}"
PHASES = "{phases: [{name: a, train: [head]}]}"


@pytest.fixture
def loaded(tmp_path):
    """Load a config that extends a base, with overrides; both are given by their parts."""

    def load(above="", *, split=SPLIT, schedule=STEP, freeze=PHASES, overrides=()):
        data = split if split.startswith("{train") else f"{{source: {SOURCE}, split: {split}}}"
        base = BASE.format(data=data, schedule=schedule, freeze=freeze)
        (tmp_path / "base.yaml").write_text(base)
        (tmp_path / "c.yaml").write_text(f"extends: base.yaml\n{above}\n")
        return load_config(tmp_path / "c.yaml", overrides=overrides)

    return load


def said(node, *names):
    """Return the values of those keys that are not at their default."""
    return {name: getattr(node, name) for name in names if getattr(node, name)}


SPLIT_KEYS = ("validation", "test", "by", "folds", "fold", "stratify", "seed")


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (SPLIT, "{folds: 5, fold: 1}", {"test": 0.2, "folds": 5, "fold": 1, "stratify": True}),
        (SPLIT, "{by: part}", {"by": "part"}),
        ("{by: part, seed: 3}", "{validation: 0.1}", {"validation": 0.1}),
        ("{by: part, seed: 3}", "{folds: 5}", {"folds": 5}),
        ("{folds: 5, fold: 1, seed: 3}", "{validation: 0.1}", {"validation": 0.1}),
        (SPLIT, "{validation: 0.3}", {"validation": 0.3, "test": 0.2, "stratify": True}),
    ],
)
@pytest.mark.parametrize("form", ["extends", "override"])
def test_another_way_to_split_replaces_the_first(loaded, below, above, expected, form):
    if form == "extends":
        config = loaded(f"data: {{split: {above}}}", split=below)
    else:
        parts = above.strip("{}").split(", ")
        named = [f"data.split.{part.replace(': ', '=')}" for part in parts]
        config = loaded(split=below, overrides=named)
    assert said(config.data.split, *SPLIT_KEYS) == {**expected, "seed": 3}


def test_parts_replace_a_source_that_is_split_and_the_other_way_round(loaded):
    parts = f"{{train: {SOURCE}, validation: {SOURCE}}}"
    data = loaded(f"data: {parts}").data
    assert (data.source, data.split, data.train.path) == (None, None, "d.csv")
    data = loaded(f"data: {{source: {SOURCE}}}", split=parts).data
    assert (data.train, data.validation, data.source.path) == (None, None, "d.csv")


@pytest.mark.parametrize(
    ("below", "above"),
    [(STEP, "{at: {epochs: [1]}}"), ("{type: step, at: {epochs: [1]}}", "{every: {steps: 3}}")],
    ids=["points", "distance"],
)
def test_points_of_a_schedule_replace_its_distance_and_the_other_way_round(loaded, below, above):
    schedule = loaded(f"schedule: {above}", schedule=below).schedule
    assert (schedule.at is None) == ("every" in above)
    assert (schedule.every is None) == ("at:" in above)


def test_an_override_says_what_it_takes_the_place_of(loaded):
    config = loaded(overrides=["freeze.method=linear_probe", "train.steps=4"])
    assert (config.freeze.method, config.train.steps, config.train.epochs) == (
        "linear_probe",
        4,
        None,
    )
    places = [note.partition(" takes the place of ") for note in config.notes]
    assert [(name, key.rpartition(" ")[2]) for name, _, key in places] == [
        ("-o freeze.method", "freeze.phases"),
        ("-o train.steps", "train.epochs"),
    ]


def test_two_overrides_that_exclude_each_other_are_refused(loaded):
    with pytest.raises(ConfigError, match="exactly one of 'epochs' and 'steps'"):
        loaded(overrides=["train.epochs=3", "train.steps=4"])


def test_names_of_users_exclude_nothing(loaded):
    arrays = "{type: arrays, path: d.npz, columns: {epochs: {array: a}, steps: {array: b}}}"
    config = loaded(
        f"data: {{source: {arrays}}}", overrides=["data.source.columns.steps={array: c}"]
    )
    assert {name: one.array for name, one in config.data.source.columns.items()} == {
        "epochs": "a",
        "steps": "c",
    }


GRADUAL = "{method: gradual, blocks_per_phase: 2, verify: end}"


@pytest.mark.parametrize("below", [GRADUAL, PHASES, "[head]"])
def test_a_method_of_the_command_line_replaces_what_freezes_in_the_file(loaded, below):
    config = loaded(freeze=below, overrides=["freeze.method=lisa", "freeze.blocks=1"])
    assert said(config.freeze, "method", "blocks") == {"method": "lisa", "blocks": 1}
    # a key that every method has stays
    assert config.freeze.verify == ("end" if below == GRADUAL else "phase")
    given_up = "freeze.blocks_per_phase" if below == GRADUAL else "freeze"
    told = [note for note in config.notes if note.startswith("-o freeze.method takes the place of")]
    assert [note for note in told if given_up in note.rpartition(": ")[2]], config.notes


def test_the_same_method_again_keeps_its_keys(loaded):
    config = loaded(freeze=GRADUAL, overrides=["freeze.method=gradual"])
    assert config.freeze.blocks_per_phase == 2


def notes_of(config):
    return [note.partition(": ")[2] for note in config.notes]


def test_a_schedule_without_a_type_is_constant_and_another_type_replaces_it(loaded):
    config = loaded("schedule: {type: linear}", schedule="{warmup: 0.3}")
    assert config.schedule.warmup == 0.0
    assert loaded("schedule: {warmup: 0.2}", schedule="{type: linear}").schedule.type == "linear"
    same = loaded("schedule: {type: constant}", schedule="{warmup: 0.3}")
    assert same.schedule.warmup == 0.3


IMPORTED = "{type: classification, losses: {type: import, path: 'p:one', args: {n: 3}}}"


def test_arguments_of_one_function_are_not_given_to_another(tmp_path):
    base = BASE.format(data=f"{{source: {SOURCE}}}", schedule=STEP, freeze=PHASES)
    base = base.replace("task: {type: classification}", f"task: {IMPORTED}")
    (tmp_path / "base2.yaml").write_text(base)
    for path, expected in (("p:one", {"n": 3}), ("p:other", {})):
        (tmp_path / "d.yaml").write_text(
            f"extends: base2.yaml\ntask: {{losses: {{type: import, path: '{path}'}}}}\n"
        )
        [loss] = load_config(tmp_path / "d.yaml").task.losses
        assert (loss.path, loss.args) == (path, expected)


@pytest.mark.parametrize(
    ("above", "told"),
    [
        ("optimizer: {type: SGD, lr: 1}", None),
        ("schedule: {type: cosine}", "schedule, which it replaces whole: 'every', 'factor' are"),
        ("freeze: {method: lisa}", "freeze, which it replaces whole: 'verify' is not taken over"),
        ("freeze: [head]", "freeze, which it replaces whole: 'verify' is not taken over"),
        ("freeze: head", "freeze, which it replaces whole: 'verify' is not taken over"),
        ("schedule: {factor: 0.1}", None),
        ("freeze: null", None),
    ],
)
def test_what_goes_with_a_mapping_of_another_kind_is_told(loaded, above, told):
    config = loaded(above, freeze="{phases: [{name: a, train: [head]}], verify: end}")
    notes = notes_of(config)
    assert len(notes) == (told is not None)
    assert all(told in note and "base.yaml:" in note for note in notes)


def test_a_missing_key_that_went_with_another_kind_names_its_line(loaded):
    with pytest.raises(ConfigError) as caught:
        loaded("optimizer: {type: SGD}")
    [problem] = caught.value.problems
    assert str(problem.origin).endswith("c.yaml:2: optimizer.lr")
    assert "base.yaml:6: optimizer.lr is of another kind, which is replaced whole" in problem.hint


@pytest.mark.parametrize("short", ["[head]", "head"])
@pytest.mark.parametrize("form", ["extends", "override"])
def test_what_every_form_of_freezing_takes_goes_with_the_short_one(loaded, short, form):
    if form == "extends":
        config = loaded("freeze: {verify: end}", freeze=short)
    else:
        config = loaded(freeze=short, overrides=["freeze.verify=end"])
    [phase] = config.freeze.phases
    assert [one.name for one in phase.freeze] == ["head"]
    assert (config.freeze.verify, config.notes) == ("end", ())


@pytest.mark.parametrize(
    ("below", "above", "gone"),
    [
        ("{low: 1, high: 9, step: 2}", "{low: 0.001, high: 0.1, log: true}", "step"),
        ("{low: 0.001, high: 0.1, log: true}", "{low: 1, high: 9, step: 2}", "log"),
    ],
)
def test_steps_of_a_range_replace_its_logarithm_and_the_other_way_round(
    tmp_path, below, above, gone
):
    base = BASE.format(data=f"{{source: {SOURCE}}}", schedule=STEP, freeze=PHASES)
    (tmp_path / "base2.yaml").write_text(f"{base}sweep: {{search: {{optimizer.lr: {below}}}}}\n")
    text = f"extends: base2.yaml\nsweep: {{search: {{optimizer.lr: {above}}}}}\n"
    (tmp_path / "d.yaml").write_text(text)
    found = load_config(tmp_path / "d.yaml").sweep.search["optimizer.lr"]
    assert not getattr(found, gone)
