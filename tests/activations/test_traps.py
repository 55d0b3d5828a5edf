"""Networks that try to betray a stored prefix end with the same bits, and are told by name."""

import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "freeze"),
    [
        ("Hooked", ["net.body"]),
        ("Stepping", ["net.body"]),
        ("Remembering", ["net.body"]),
        ("ReadingOnly", ["net.body"]),
        ("Graph", ["net.body"]),
        ("Spoiling", ["net.body"]),
        ("Branches", ["net.body"]),
        ("PassedOn", ["net.body"]),
        ("Laid", ["net.body"]),
        ("Routed", ["net.dark", "net.bright"]),
        ("Inferring", ["net.body"]),
        ("Doubling", ["net.body"]),
        ("Sloping", ["net.body"]),
    ],
    ids=str,
)
def test_difficult_networks_are_answered_with_the_same_bits(odd_runs, net, freeze):
    stored, _, said = odd_runs(net, freeze=freeze)
    assert stored.cache.statistics.answered > 0, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ("Detached", "net.body.0 (Linear) depends on trained weights past autograd"),
        ("WithoutGrad", "net.body.0 (Linear) depends on trained weights past autograd"),
        ("ByChoice", "net.body (Embedding) depends on trained weights past autograd"),
        ("Scaled", "net.body.0 (Linear) depends on trained weights past autograd"),
        ("Averaging", "net.body (Body) keeps 'mean' from call to call"),
        ("Shifting", "net.body.0 (Linear) depends on 'net.mean' outside of it, which moves"),
        ("ShiftingNumber", "net.body.0 (Linear) depends on 'net.mean' outside of it, which moves"),
        ("ShiftingAttribute", "net.body.0 (Linear) is random"),
        ("Recurrent", "net.body (GRU) gives a sample other values in other company, or samples"),
        ("SelfDrawing", "frozen layers draw random numbers"),
        ("Sized", "the network calls other layers for them"),
    ],
    ids=str,
)
def test_sly_networks_run_whole_and_the_reason_is_told(odd_runs, net, reason):
    stored, _, said = odd_runs(net, freeze=["net.body"])
    assert any(reason in line for line in said), said
    assert stored.cache.statistics.answered == 0


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ("Saving", "net.body (Body) hands on values besides what it returns"),
        ("Counting", "net.body (Body) keeps 'calls' from call to call"),
        ("Thin", "net.body (Body) returns a sparse tensor"),
    ],
    ids=str,
)
def test_within_a_module_that_cannot_be_answered_layers_are(odd_runs, net, reason):
    stored, _, said = odd_runs(net, freeze=["net.body"])
    assert any(reason in line for line in said), said
    assert stored.cache.statistics.answered > 0


def test_a_trained_number_that_a_module_returns_detached_is_no_part_of_a_row(odd_runs):
    """It lies in the memory of the parameter: a copy kept for later batches would be outdated."""
    stored, _, said = odd_runs("HandingOn", freeze=["net.body.linear"])
    assert any("net.body (Body) depends on trained weights past autograd" in line for line in said)
    assert stored.cache.statistics.answered > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("python", "net.body (Body) is random"),
        ("numpy", "net.body (Body) is random"),
        ("own", "net.body (Body) keeps 'draws' from call to call"),
        ("array", "net.body (Body) keeps 'array' from call to call"),
        ("nested", "net.body (Body) keeps 'nested' from call to call"),
    ],
)
def test_numbers_are_not_drawn_in_vain_nor_counted(odd_runs, kind, reason):
    _, _, said = odd_runs("Drawing", freeze=["net.body"], args={"kind": kind})
    assert any(reason in line for line in said), said


def test_trials_leave_no_trace_in_the_network(odd_runs):
    stored, whole, _ = odd_runs("Stepping", freeze=["net.body"])
    assert stored.model.net.seen == whole.model.net.seen
    assert torch.equal(stored.model.net.mean, whole.model.net.mean)
