"""Fingerprints see every bit, and the proof covers parameters and buffers."""

import math

import pytest
import torch
from torch import nn

from finetune.errors import FrozenWeightError
from finetune.freezing.apply import freeze
from finetune.freezing.proof import (
    fingerprint,
    fingerprints,
    frozen_tensors,
    hashed,
    prove,
    verify,
)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([math.nextafter(1.0, 2.0)], dtype=torch.float64)),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.tensor([1]), torch.tensor([2])),
    ],
    ids=["signed zero", "last bit", "dtype", "shape", "integers"],
)
def test_fingerprints_differ(one, other):
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        torch.tensor(3),
        torch.randn(2).bfloat16(),
        torch.zeros(0),
        torch.randn(2, dtype=torch.complex64),
        torch.tensor([True, False]),
    ],
    ids=["dense", "transposed", "scalar", "bfloat16", "empty", "complex", "bool"],
)
def test_a_clone_has_the_same_fingerprint(tensor):
    assert fingerprint(tensor) == fingerprint(tensor.clone())


@pytest.mark.parametrize("byte", [0, 4 * 2**20, 9 * 2**20])
def test_one_bit_of_a_large_tensor_makes_another_fingerprint(byte):
    large = torch.zeros(9 * 2**20 + 1, dtype=torch.uint8)
    before = fingerprint(large)
    large[byte] ^= 1
    assert fingerprint(large) != before


def test_many_tensors_hashed_together_have_the_fingerprints_of_each_alone():
    sizes = (0, 1, 7 * 2**20, 3, 5 * 2**20)
    tensors = {str(size): torch.arange(size, dtype=torch.uint8) for size in sizes}
    assert hashed(tensors) == {name: fingerprint(tensor) for name, tensor in tensors.items()}


def test_ranks_gather_what_they_share_in_one_order_whatever_the_order_of_names():
    """Processes of torchrun iterate over a set in different orders."""
    asked = []

    class Shared(torch.Tensor):
        def full_tensor(self):
            asked.append(len(self))
            return self.as_subclass(torch.Tensor)

    tensors = {name: torch.ones(size).as_subclass(Shared) for size, name in enumerate("abc", 1)}
    for names in ("abc", "bca", "cab"):
        assert list(hashed({name: tensors[name] for name in names})) == list(names)
    assert asked == [1, 2, 3] * 3


def test_ranks_measure_in_one_order_how_far_shared_tensors_have_changed():
    asked = []

    class Shared(torch.Tensor):
        def full_tensor(self):
            asked.append(len(self))
            return torch.zeros(len(self))

    copies = {name: torch.ones(size) for size, name in enumerate("abc", 1)}
    shared = {name: nn.Parameter(one.as_subclass(Shared)) for name, one in copies.items()}
    model = nn.ParameterDict(shared)
    before = {name: fingerprint(tensor) for name, tensor in copies.items()}
    for names in ("abc", "bca", "cab"):
        found = prove(
            model,
            {n: before[n] for n in names},
            phase="all",
            first_step=0,
            last_step=1,
            copies=copies,
        )
        assert dict(found.largest_change) == dict.fromkeys("abc", 1.0)
    # In each order once for the fingerprints, and once for the distances.
    assert asked == [1, 2, 3] * 6


def test_the_proof_covers_frozen_parameters_and_the_buffers_of_wholly_frozen_modules():
    model = make_net()
    names = frozen_tensors(model, {"0.weight", "1.weight", "1.bias"})
    assert set(names) == {
        "0.weight", "1.weight", "1.bias",
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip


def test_fingerprints_without_names_cover_what_is_frozen_now():
    model = make_net()
    freeze(model, ["1"])
    assert set(fingerprints(model)) == set(frozen_tensors(model, {"1.weight", "1.bias"}))


def test_verify_names_every_tensor_that_moved():
    model = make_net()
    freeze(model, ["0", "1"])
    before = fingerprints(model)
    verify(model, before)
    with torch.no_grad():
        model[0].bias[3] += 1e-7
        model[1].running_mean[0] = -0.0
    with pytest.raises(FrozenWeightError, match=r"2 of 7 .*0\.bias.*1\.running_mean"):
        verify(model, before)


def test_prove_tells_what_changed_between_two_steps():
    model = make_net()
    freeze(model, ["0"])
    before = fingerprints(model)
    assert prove(model, before, phase="head", first_step=0, last_step=9).intact
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    proof = prove(model, before, phase="head", first_step=0, last_step=9)
    assert (proof.intact, proof.changed, proof.tensors) == (False, ("0.weight",), 2)


def test_a_frozen_parameter_that_moves_before_the_first_step_fails_the_proof(small_run):
    """What never trains is fingerprinted as the run is built, and proven from there."""
    trainer = small_run(freeze=["body"])
    with torch.no_grad():
        trainer.model.get_parameter("body.bias")[1] += 1e-3
    with pytest.raises(FrozenWeightError, match=r"1 of 2 frozen tensors changed .*body\.bias"):
        trainer.fit()
