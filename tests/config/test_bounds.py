"""Every number of a config has a smallest and a largest value; no value gives a traceback."""

import math
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from finetune import FinetuneError, build_trainer, load_config
from finetune.config.bounds import Bounds, beyond
from finetune.config.catalogue import LAYERS, OPTIMIZERS, TRANSFORMS
from finetune.config.dumping import dump_config
from finetune.config.reader import read_text
from finetune.config.schema import schema
from finetune.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TRUST = ["efficientnet_lite_pytorch"]
QUICK = {"linear", "digits"}

BOUNDS_BELOW = {"minimum", "exclusiveMinimum"}
BOUNDS_ABOVE = {"maximum", "exclusiveMaximum"}

EXTREMES = [
    *("0", "-1", "1", "2147483648", "9223372036854775808", "18446744073709551616", "1e39", "1e300"),
    *("5e-324", ".nan", ".inf", "-.inf", "-0.0", "1000000000", "1e30", "-1e30", "1e-30", "0.5"),
]

FULL = """\
seed: 0
model:
  layers:
    - {name: a, type: Linear, out_features: 4}
    - {name: b, type: Linear, in_features: 4, out_features: 3}
    - {name: drop, type: Dropout, p: 0.5}
    - {name: c, type: concat, inputs: [a, drop], dim: 1}
    - {name: norm, type: BatchNorm1d, momentum: 0.1, eps: 1e-5}
    - {name: out, type: Linear, out_features: 10}
data:
  source: {type: random, samples: 16, features: [5], targets: [10], seed: 1}
  split: {validation: 0.2, test: 0.1, seed: 3}
  workers: 0
task:
  type: regression
  losses:
    - {type: huber, delta: 1.0, weight: 2.0, name: h}
    - {type: mse, weight: 0.5}
freeze:
  phases:
    - {name: one, train: [out], until: {epochs: 1}, lr: {out: 0.1}}
    - {name: two, freeze: [a], until: {steps: 3}, lr: {out: {lr: 0.1, over: 0.5}}}
    - {name: three, freeze: [a], until: {fraction: 0.9}}
    - name: four
      freeze: [a]
      until: {plateau: validation/loss, patience: 2, min_delta: 0.1, at_most: {steps: 9}}
optimizer:
  type: AdamW
  lr: 1e-3
  weight_decay: 0.01
  betas: [0.9, 0.999]
  eps: 1e-8
  layer_decay: 0.9
  freeze_below: 0.01
schedule: {type: one_cycle, rise: 0.3, start_divisor: 25, end_divisor: 100}
train:
  steps: 20
  batch_size: 4
  micro_batch: 2
  max_grad_norm: 1.0
  nan_limit: 10
  hang_timeout_s: 100.0
  log_every: 10
  evaluate_every: {steps: 5}
  early_stopping: {patience: 3, min_delta: 0.1}
  checkpoint: {every: {steps: 5}, keep_last: 2, best: validation/loss, keep_best: 1}
cache: {disk_gb: 1.0}
inference: {batch_size: 2}
"""


def numbers(node, place=""):
    """Yield what the schema says of each number, and where."""
    if isinstance(node, dict):
        types = node.get("type")
        if any(
            one in ("integer", "number") for one in (types if isinstance(types, list) else [types])
        ):
            yield place, node
        for key, value in node.items():
            yield from numbers(value, f"{place}/{key}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from numbers(value, f"{place}/{position}")


def unbounded(root):
    return [
        place
        for place, node in numbers(root)
        if not (node.keys() & BOUNDS_BELOW and node.keys() & BOUNDS_ABOVE)
    ]


def test_every_number_of_the_schema_has_both_bounds():
    root = schema()
    assert len(list(numbers(root))) > 400
    assert unbounded(root) == []


@pytest.mark.parametrize("bounds", [{}, {"minimum": 0}, {"exclusiveMaximum": 3}])
def test_a_number_without_bounds_is_seen(bounds):
    inner = {"type": ["integer", "null"], **bounds}
    assert unbounded({"properties": {"a": {"anyOf": [inner]}}}) == ["/properties/a/anyOf/0"]


def test_every_argument_of_a_class_has_finite_bounds():
    for table in (LAYERS, TRANSFORMS, OPTIMIZERS):
        for entry in table.values():
            for argument in entry.arguments.values():
                assert -math.inf < argument.bounds.least <= argument.bounds.most < math.inf


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        (0, True), (1, True), (0.5, True), (True, True), (None, True), ("classes", True),
        ((0, 1), True), (2, False), (-1e-9, False), (math.nan, False), (math.inf, False),
        (10**400, False), ((0.5, 2), False), (((0, 5),), False), ({"a": [9]}, False),
        ((0,) * 1001, False),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_numbers_are_held_to_their_bounds_also_in_lists(value, is_right):
    assert (beyond(value, Bounds(0, 1)) is None) == is_right


def leaves(value, key=()):
    """Yield the keys of the numbers of a document."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*key, name))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from leaves(item, (*key, str(position)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield ".".join(key)


def accepted(path, key, tmp_path):
    """Put every extreme value at a key; return those that the config takes."""
    taken = []
    for number, value in enumerate(EXTREMES):
        try:
            config = load_config(path, overrides=[f"{key}={value}"], trust=TRUST)
            build_trainer(config, tmp_path / f"{key}-{number}")
        except FinetuneError:
            continue
        taken.append(value)
    return taken


CASES = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in CONFIGS
]


def saved(path):
    """Return the text of a config in which every key is named, and the keys of its numbers."""
    text = dump_config(load_config(path, trust=TRUST))
    return text, list(leaves(read_text(text, None).root.plain()))


@cache
def first_of_each_kind():
    """Return a number of the shipped configs for each key: its config's path and its own key.

    Two keys that differ in their positions in lists alone are held by the same bounds.
    """
    first = {}
    for path in sorted(CONFIGS, key=lambda path: path.stem not in QUICK):
        for key in saved(path)[1]:
            first.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", key), (path, key))
    return first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of layers without units
@pytest.mark.parametrize("path", CASES)
def test_no_extreme_number_in_a_shipped_config_is_a_traceback(path, tmp_path):
    text, all_keys = saved(path)
    assert len(all_keys) > 10
    whole = tmp_path / "whole.yaml"
    whole.write_text(text)
    for place, key in first_of_each_kind().values():
        if place == path:
            assert len(accepted(whole, key, tmp_path)) < len(EXTREMES) / 2 + 1, key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_extreme_number_in_any_field_is_a_traceback(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    build_trainer(load_config(path), tmp_path / "right")
    keys = list(leaves(read_text(FULL, None).root.plain()))
    assert len(keys) > 45
    for key in keys:
        accepted(path, key, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source.samples=100000000000000", "samples: must be at most 1000000000"),
        ("data.source={type: random, samples: 1000000000}", "samples: gives 16000000000 numbers"),
        ("seed=18446744073709551616", "seed: must be less than 4294967296"),
        ("optimizer.weight_decay=1e39", "optimizer.weight_decay: must be between"),
        ("optimizer.betas=[1.5,-1]", "optimizer.betas: 1.5 must be between 0 and 1"),
        ("optimizer.lr=5e-324", "optimizer.lr: must be at least 1e-30"),
        ("train.hang_timeout_s=1e300", "train.hang_timeout_s: must be at most"),
        ("train.hang_timeout_s=5e-324", "train.hang_timeout_s: must be at least 0.01"),
        ("data.workers=100000", "data.workers: must be at most 512"),
        ("train.batch_size=1000000000000", "train.batch_size: must be at most"),
        ("model.layers.0.out_features=10000000000000", "layers.0.out_features: must be between"),
        ("cache.disk_gb=1e308", "cache.disk_gb: must be at most"),
        (f"name={'a' * 300}", "name: takes at most 200 bytes"),
        (f"name={'ä' * 101}", "name: takes at most 200 bytes"),
        (f"model.layers.0.name={'a' * 300}", "layers.0.name: takes at most 200 character(s)"),
        ("train.device=cuda:99999999999999999999", "train.device: does not fit"),
        ("freeze=[{depth: '99999999999999999999:'}]", "depth: does not fit"),
        (f"freeze=[{{rows: 'a[{'9' * 5000}]'}}]", "rows: "),
        ("freeze=['" + "*a" * 600 + "']", "takes at most 1000 character"),
        ("model.layers.0={type: LSTM, hidden_size: 4, num_layers: 100000}", "num_layers: must be"),
        ("model.layers.0={type: timm, architecture: vit, args: {depth: 1e9}}", "args.depth: must"),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_number_without_sense_is_told_with_its_key(tmp_path, override, message):
    path = tmp_path / "full.yaml"
    path.write_text(CONFIGS[[p.stem for p in CONFIGS].index("linear")].read_text())
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides=[override])
    assert message in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "freeze",
    [
        "{method: lp_ft, probe: {epochs: 1}}",
        "{method: chain_thaw}",
        "{method: ulmfit, rate_decay: 1e6}",
        "{method: freezeout, first: 5e-324}",
        "{method: freezeout, first: 1e-30, spacing: linear}",
    ],
)
@pytest.mark.parametrize("rate", ["1e-30", "1e38"])
def test_rates_that_a_method_makes_stay_within_bounds_or_are_told(tmp_path, freeze, rate):
    layers = ", ".join(f"{{type: Linear, out_features: {n}}}" for n in [*range(2, 70), 10])
    path = tmp_path / "c.yaml"
    path.write_text(
        f"model: {{layers: [{layers}]}}\n"
        "data: {source: {type: random, samples: 8}, split: {validation: 0.5}}\n"
        "task: {type: regression}\n"
        f"optimizer: {{type: SGD, lr: {rate}}}\n"
        "train: {epochs: 99, batch_size: 4}\n"
        f"freeze: {freeze}\n"
    )
    with suppress(FinetuneError):
        build_trainer(load_config(path), tmp_path / "run")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_no_optimizer_overflows_with_a_traceback_at_the_bounds_of_its_arguments(name, tmp_path):
    whole = CONFIGS[[path.stem for path in CONFIGS].index("linear")]
    known = OPTIMIZERS[name].arguments.items()
    numbers = [(n, one) for n, one in known if one.kinds & {"int", "float"}]
    trials = [{}, *({n: bound} for n, one in numbers for bound in one.bounds)]
    for number, arguments in enumerate(trials):
        given = ", ".join(f"{n}: {value!r}" for n, value in arguments.items())
        override = f"optimizer={{type: {name}, lr: 1e38, {given}}}"
        config = load_config(whole, overrides=[override, "train.steps=2"])
        with suppress(FinetuneError):
            build_trainer(config, tmp_path / str(number)).fit()


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_overflows_is_told_with_its_key(tmp_path):
    whole = CONFIGS[[path.stem for path in CONFIGS].index("linear")]
    config = load_config(whole, overrides=["optimizer={type: Adam, lr: 1e38}"])
    with pytest.raises(FinetuneError, match=r"optimizer.lr: a step of Adam at the rate 1e\+38"):
        build_trainer(config, tmp_path / "run").fit()
