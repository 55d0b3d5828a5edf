"""What a process knows of the others, before it talks to them."""

import pytest
import torch

from finetune.config.train import TrainConfig
from finetune.distributed import whole
from finetune.errors import DataError, FinetuneError
from finetune.train.build import build_parts
from finetune.train.ranks.rank_settings import shared_settings
from finetune.which_rank import ALONE, Ranks, rank_named

TOLD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}


@pytest.fixture
def told(monkeypatch):
    def tell(**changes):
        for name, value in (TOLD | changes).items():
            monkeypatch.setenv(name, value)

    return tell


def test_a_process_is_alone_unless_torchrun_tells_otherwise(told, monkeypatch):
    assert Ranks.of_environment() == ALONE
    told()
    assert Ranks.of_environment() == Ranks(1, 2, 1)
    monkeypatch.delenv("MASTER_PORT")
    assert Ranks.of_environment() == ALONE
    told(WORLD_SIZE="two")
    with pytest.raises(FinetuneError, match="must be numbers"):
        Ranks.of_environment()


def test_errors_of_another_rank_name_it_and_bugs_too(told):
    told()
    error = DataError("no such file", hint="make one")
    with pytest.raises(FinetuneError, match=r"^rank 1: no such file") as caught, rank_named():
        raise error
    assert caught.value.exit_code == error.exit_code
    assert "make one" in str(caught.value)
    with pytest.raises(KeyError) as bug, rank_named():
        raise KeyError("a")
    assert bug.value.__notes__ == ["rank 1"]


def test_errors_of_the_first_rank_stay_as_they_are(told):
    told(RANK="0")
    error, bug = DataError("no such file"), KeyError("a")
    with pytest.raises(DataError) as caught, rank_named():
        raise error
    assert caught.value is error
    with pytest.raises(KeyError), rank_named():
        raise bug
    assert not hasattr(bug, "__notes__")


def test_an_automatic_micro_batch_is_the_share_of_a_rank():
    settings = TrainConfig(steps=1, batch_size=10)
    assert shared_settings(settings, Ranks(0, 4)).micro_batch == 3
    assert shared_settings(settings, ALONE) is settings
    cut = TrainConfig(steps=1, batch_size=10, micro_batch=2)
    assert shared_settings(cut, Ranks(0, 4)) is cut


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"steps": 1, "batch_size": 1}}, "are fewer than 2 processes"),
        ({"task": {"type": "regression", "log_gradient_norms": True}}, "is not added up over 2"),
        ({"train": {"steps": 1, "device": "mps"}}, "cannot share the device"),
        (
            {"train": {"steps": 1, "parallel": "fsdp2", "precision": "float16"}},
            "the loss scale of float16 is not shared",
        ),
    ],
)
def test_what_several_processes_cannot_share_is_refused(small_config, changes, reason):
    config = small_config(**changes)
    with pytest.raises(FinetuneError, match=reason):
        build_parts(config, ranks=Ranks(1, 2, 1))


class Gathered(torch.Tensor):
    """A tensor as torch's sharded ones, whose whole does not fit into memory."""

    def full_tensor(self):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_runs_out_where_ranks_meet_is_no_lost_rank():
    with pytest.raises(torch.OutOfMemoryError):
        whole(torch.ones(3).as_subclass(Gathered))
