"""The contest is fair: who does the same work ends with the same weights, or near them."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = {"lightning": "lightning", "trainer": "accelerate"}


def measure(folder, *choices):
    """Run the command with `choices`; return its document."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--quick", "--threads", "1"]
    path = folder / "figures.json"
    command += ["--json", str(path), "--rounds", "1", *choices]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.fixture(scope="module")
def thawed(tmp_path_factory):
    """Run the contestants of the house through three phases, each with another frozen part."""
    ours = ("--contestants", "limit", "ours", "ours_warm", "plain")
    folder = tmp_path_factory.mktemp("thaw")
    return measure(folder, "--cases", "gradual_thaw", *ours)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ours_the_loop_by_hand_and_the_limit_end_with_the_same_bits(thawed):
    document, _ = thawed
    weights = {run["contestant"]: run["weights"] for run in document["runs"]}
    assert weights["ours"] == weights["plain"] == weights["limit"]
    assert weights["ours_warm"] != weights["ours"], "another learning rate"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_figure_is_there_and_the_table_tells_it(thawed):
    document, table = thawed
    for run in document["runs"]:
        assert 0 < run["work_cpu_seconds"] < run["cpu_seconds"]
        assert 0 < run["work_seconds"] < run["seconds"]
        assert run["peak_mib"] > 100
        assert 0 < run["accuracy"] <= 1
    assert {row["ratio"] for row in document["ratios"]} == {"ours / limit", "plain / ours"}
    assert all(row["case"] == "gradual_thaw" for row in document["ratios"])
    assert "gradual_thaw" in table
    assert "ours / limit" in table


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_epochs_left_out_are_counted_and_marked(tmp_path):
    choices = ("--cases", "minilm_head", "--contestants", "plain", "--peer-epochs")
    document, table = measure(tmp_path, *choices, "2")
    (run,) = document["runs"]
    assert (run["projected"], run["epochs"], run["accuracy"]) == (True, 2, None)
    assert "~" in table
    document, table = measure(tmp_path, *choices, "0")
    (whole,) = document["runs"]
    assert (whole["projected"], whole["epochs"]) == (False, 4)
    assert "~" not in table


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_with_the_same_work_ends_near_the_same_weights(tmp_path, peer):
    """With only a head to train there is no Dropout, so even its bits are those of the loop."""
    if find_spec(PEERS[peer]) is None:
        pytest.skip("the extra `bench` is not installed")
    choices = ("--cases", "minilm_head", "--contestants", "plain", peer, "--peer-epochs", "0")
    document, _ = measure(tmp_path, *choices)
    plain, other = document["runs"]
    assert other["accuracy"] == pytest.approx(plain["accuracy"], abs=0.005)
    assert other["weights"] == plain["weights"]


@pytest.mark.slow
def test_a_missing_peer_is_told_with_the_way_to_install_it(tmp_path):
    if all(find_spec(package) for package in PEERS.values()):
        pytest.skip("the extra `bench` is installed")
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not installed: " in done.stderr
    assert "pip install -e '.[bench]'" in done.stderr
