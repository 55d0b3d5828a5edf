"""Under `train.compile` what is frozen stays out of the compiled code, and keeps its bits."""

import sys

import pytest
import torch
from torch._dynamo.utils import counters

from finetune.errors import FinetuneError
from finetune.predict import load_predictor
from finetune.train.wire import build_trainer

# the compiler hides warnings that it expects, which does not keep them from being errors here
pytestmark = pytest.mark.filterwarnings("ignore")
PHASES = {
    "phases": [
        {"name": "deep", "freeze": ["net.down1", "net.down2"], "until": {"epochs": 2}},
        {"name": "less", "freeze": ["net.down1"], "until": {"epochs": 2}},
        {"name": "all", "freeze": []},
    ]
}


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_stored_or_not_cold_or_warm_a_compiled_run_ends_with_the_same_bits(runs, tmp_path):
    config = runs.odd_config("UNet", freeze=PHASES, cache="auto", epochs=5, compile=True)
    counters.clear()
    cold, _ = runs.trained(config, tmp_path / "cold")
    assert counters["stats"]["unique_graphs"] > 0
    warm, _ = runs.trained(config, tmp_path / "warm")
    off = runs.odd_config("UNet", freeze=PHASES, cache="off", epochs=5, compile=True)
    whole, _ = runs.trained(off, tmp_path / "whole")
    assert cold.cache.statistics.answered > 0
    assert warm.cache.statistics.recorded == 0
    for other in (warm, whole):
        runs.assert_equal_weights(cold, other)
    assert whole.cache.statistics.answered == 0
    plain = load_predictor(tmp_path / "cold", trust=runs.MODULES).model.state_dict()
    assert plain.keys() == cold.model.state_dict().keys()
    assert all(torch.equal(plain[name], bits) for name, bits in cold.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("prefix", ["auto", "off"])
def test_only_what_is_trained_is_compiled(runs, tmp_path, prefix):
    config = runs.odd_config(
        "TellsWhatIsCompiled", freeze=["net.body"], cache=prefix, compile=True, epochs=2
    )
    build_trainer(config, tmp_path / "run")  # imports the network's module
    seen = sys.modules["cached_nets"].SEEN
    for calls in seen.values():
        calls.clear()
    runs.trained(config, tmp_path / "run")
    assert set(seen["body"]) == {False}
    assert any(seen["head"])


def test_without_a_compiler_it_says_so_before_anything_runs(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = runs.odd_config("UNet", freeze=PHASES, cache="auto", compile=True)
    with pytest.raises(FinetuneError, match="no-such-compiler not found") as refused:
        build_trainer(config, tmp_path / "run")
    assert refused.value.exit_code == 2
