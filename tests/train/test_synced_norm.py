"""Batch norms over the ranks: the formula of torch, its gradients, and what it does not go with."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.cli.plans import preview
from finetune.distributed import Link
from finetune.errors import FinetuneError, ModelError
from finetune.train.ranks.rank_settings import refuse_unshared
from finetune.train.ranks.synced_norm import SyncedNorms, _OverRanks
from finetune.which_rank import ALONE, Ranks

SHAPES = [(6, 3), (6, 3, 5), (4, 3, 2, 5)]


def normalised(norm, values, *, over_ranks):
    """Run a norm; return its outputs, its gradients and its statistics."""
    values = values.clone().requires_grad_()
    if over_ranks:
        with _OverRanks(Link(ALONE)) as mode:
            outputs = norm(values)
        assert mode.has_answered
    else:
        outputs = norm(values)
    (outputs.float().sin() * torch.arange(outputs.numel()).view_as(outputs)).sum().backward()
    gradients = [values.grad, *(one.grad for one in norm.parameters())]
    return [outputs.detach(), *gradients, *norm.buffers()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_one_rank_gives_what_torch_gives(shape, affine, momentum):
    torch.manual_seed(0)
    # A mean that is large beside the deviation: sums of squares would lose digits here.
    values = torch.randn(shape, dtype=torch.float64) + 1000
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    found, expected = (
        normalised(
            kind(3, affine=affine, momentum=momentum).double(), values, over_ranks=over_ranks
        )
        for over_ranks in (True, False)
    )
    for now, then in zip(found, expected, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-9, atol=1e-9)


def test_half_precision_keeps_its_type_and_float32_statistics():
    values = torch.randn(8, 3, dtype=torch.bfloat16)
    outputs, gradient, *_, mean, _, _ = normalised(nn.BatchNorm1d(3), values, over_ranks=True)
    assert outputs.dtype == gradient.dtype == torch.bfloat16
    assert mean.dtype == torch.float32


def test_what_a_norm_does_beside_its_statistics_stays():
    class WithActivation(nn.BatchNorm1d):
        def forward(self, values):
            return super().forward(values).relu()

    values = torch.randn(8, 3)
    found, expected = (
        normalised(WithActivation(3), values, over_ranks=over_ranks)[0]
        for over_ranks in (True, False)
    )
    assert (found == 0).any()
    torch.testing.assert_close(found, expected)


class Own(nn.BatchNorm1d):
    """A norm that computes its statistics by itself."""

    def forward(self, values):
        return values - values.mean(0)


def test_a_norm_with_statistics_of_its_own_is_refused():
    norms = SyncedNorms(Link(Ranks(0, 2, 0)), nn.Sequential(Own(3)), is_wanted=True)
    norms.begin_phase()
    assert norms.names == ["0"]
    with norms.running(), pytest.raises(ModelError, match=r"does not call F\.batch_norm"):
        norms._model(torch.randn(4, 3))


def test_one_process_and_norms_in_evaluation_mode_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
    alone = SyncedNorms(Link(ALONE), model, is_wanted=True)
    several = SyncedNorms(Link(Ranks(0, 2, 0)), model, is_wanted=True)
    for norms in (alone, several):
        norms.begin_phase()
    assert (alone.names, several.names) == ([], ["0"])
    with several.running():
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])


def test_a_single_value_over_all_ranks_is_refused():
    with _OverRanks(Link(ALONE)), pytest.raises(ModelError, match="more than one value"):
        F.batch_norm(torch.randn(1, 3), None, None, training=True)


NET = {
    "layers": [
        {"name": "body", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
DATA = {"source": {"type": "random", "samples": 41, "features": 4, "targets": 3}}


@pytest.mark.parametrize(
    ("train", "samples", "reason"),
    [
        ({"sync_norm": True}, 41, "the last step of each epoch has 1 of 41 samples"),
        ({"sync_norm": True, "drop_last": True}, 41, None),
        ({"sync_norm": True}, 43, None),
        ({"sync_norm": True, "compile": True}, 40, "a compiled network"),
        ({}, 41, None),
    ],
)
def test_what_synced_norms_do_not_go_with_is_refused(
    small_config, small_run, train, samples, reason
):
    task = small_run(model=NET, data=DATA).stepper.task
    config = small_config(model=NET, data=DATA, train={"steps": 2, "batch_size": 8} | train)
    if reason is None:
        refuse_unshared(config, task, Ranks(0, 3, 0), samples)
        return
    with pytest.raises(FinetuneError, match=reason):
        refuse_unshared(config, task, Ranks(0, 3, 0), samples)


@pytest.mark.parametrize(
    ("train", "frozen", "told"),
    [
        ({"sync_norm": True}, [], "normalises over its own passes, and over the samples of all"),
        ({"sync_norm": True}, ["norm"], "sync_norm has no effect: no batch norm trains"),
        ({"parallel": "ddp"}, [], "each normalises over its own micro-batch in 'norm'"),
        ({"parallel": "ddp"}, ["norm"], None),
        ({}, [], None),
    ],
)
def test_plan_says_over_what_batch_norms_normalise(small_config, train, frozen, told):
    phases = {"phases": [{"name": "a", "freeze": frozen}]}
    train = {"steps": 2, "batch_size": 8, **train}
    config = small_config(model=NET, data=DATA, train=train, freeze=phases)
    lines = [lint.message for lint in preview(config).lints]
    found = [line for line in lines if "normalise" in line or "no batch norm trains" in line]
    assert (told is None) == (not found)
    assert told is None or told in found[0]
