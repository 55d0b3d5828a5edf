"""Processes of a machine that share the weights of a network hold one copy before it is cut."""

import json
import resource

import pytest
import torch
import yaml
from torch import nn

from finetune.distributed import Link
from finetune.errors import ModelError
from finetune.models.network import Network
from finetune.train.ranks.one_copy import built_in_turns
from finetune.which_rank import ALONE


class Odd(nn.Module):
    """Parameters of many kinds: two of one memory, one of another order, numbers of two bytes."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(3, 5)
        self.short = nn.Parameter(torch.randn(3, 3).bfloat16())
        self.number = nn.Parameter(torch.tensor(2.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.first, self.second = (nn.Parameter(one) for one in torch.randn(8, 2).split(4))
        self.thin = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
        self.register_buffer("mean", torch.randn(7))


def built():
    torch.manual_seed(3)
    return Network(["x"], {"odd": Odd()}, [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_parameters_in_a_file_have_the_bits_that_they_had(folder):
    made = []
    network, lines = built_in_turns(lambda: made.append(built()) or made[0], Link(ALONE))
    was, now = built().state_dict(), network.state_dict()
    assert network is made[0]
    assert list(was) == list(now)
    assert all(torch.equal(was[name].to_dense(), now[name].to_dense()) for name in was)
    assert lines == []
    assert [*folder.iterdir()] == []
    odd = network.odd
    assert odd.first.untyped_storage().data_ptr() == odd.second.untyped_storage().data_ptr()
    # A write stays in this process, and reaches no neighbour in the file.
    with torch.no_grad():
        odd.plain.weight.fill_(1)
    assert torch.equal(odd.plain.bias, was["odd.plain.bias"])


def test_without_room_for_a_file_each_process_keeps_its_own(folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        network, lines = built_in_turns(built, Link(ALONE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    was = built().state_dict()
    assert torch.equal(network.odd.short, was["odd.short"])
    assert lines == [
        "processes: each holds all of the network until it is cut, as there is no file for them "
        "to share (TMPDIR): File too large"
    ]
    assert [*folder.iterdir()] == []


def test_without_a_folder_for_temporary_files_each_process_keeps_its_own(folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder / "gone"))
    network, lines = built_in_turns(built, Link(ALONE))
    assert torch.equal(network.odd.short, built().odd.short)
    assert [line.rpartition(": ")[2] for line in lines] == ["No such file or directory"]


def test_a_network_that_cannot_be_built_is_told_after_the_turns(folder):
    def fails():
        raise ModelError("layer 'a': no such size")

    with pytest.raises(ModelError, match="no such size"):
        built_in_turns(fails, Link(ALONE))
    assert [*folder.iterdir()] == []


WATCHED = """
import json, os, sys, time
from pathlib import Path
import finetune
import finetune.train.wire
from finetune.config.loader import load_config
from finetune.train import build
from finetune.train.ranks import shards

rank, build_network, shard, told = os.environ["RANK"], build.build_network, shards.shard, {}

def own_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024

def turn(**arguments):
    told["begins"], told["before"] = time.monotonic(), own_bytes()
    found = build_network(**arguments)
    told["held"], told["ends"] = own_bytes(), time.monotonic()
    return found

def watched(model, *others):
    told["weights"], told["cut"] = sum(one.nbytes for one in model.parameters()), own_bytes()
    return shard(model, *others)

build.build_network, shards.shard = turn, watched
finetune.build_trainer(load_config(sys.argv[1]), sys.argv[2])
Path(f"told.{rank}").write_text(json.dumps(told))
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_build_in_turns_and_let_their_copies_go(two_ranks, small_config, tmp_path):
    layers = [
        {"name": "body", "type": "Linear", "out_features": 4096},
        {"name": "middle", "type": "Linear", "out_features": 4096},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
    train = {"steps": 2, "batch_size": 8, "parallel": "fsdp2"}
    config = small_config(model={"layers": layers}, train=train)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    both = two_ranks(tmp_path / "config.yaml", tmp_path / "run", program=("-c", WATCHED))
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    first, second = (json.loads((tmp_path / f"told.{n}").read_text()) for n in range(2))
    assert first["ends"] < second["begins"]
    for rank in (first, second):
        # A little may come from memory that was free in the process before.
        assert rank["held"] - rank["before"] > rank["weights"] * 0.9
        assert rank["cut"] - rank["before"] < rank["weights"] / 2
