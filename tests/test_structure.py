"""Outputs of every kind are taken apart into tensors and put together again."""

from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from finetune.structure import (
    apart_from_tensors,
    folded,
    is_opaque,
    rebuilt,
    tensors_in,
    values_in,
)

Pair = namedtuple("Pair", "one other")


@dataclass(frozen=True)
class Parts:
    value: torch.Tensor
    name: str = "x"


def ones():
    return torch.ones(2)


KINDS = {
    "nested": lambda: {"a": [ones(), (ones(), None)], 3: ones()},
    "ordered": lambda: OrderedDict(b=ones(), a=ones()),
    "with a default": lambda: defaultdict(list, a=ones()),
    "user dict": lambda: UserDict(a=ones()),
    "read only": lambda: MappingProxyType({"a": ones()}),
    "model output": lambda: BaseModelOutput(last_hidden_state=ones(), hidden_states=(ones(),)),
    "named tuple": lambda: Pair(ones(), "word"),
    "of torch": lambda: torch.ones(2, 3).max(1),
    "dataclass": lambda: Parts(ones()),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_an_output_is_made_anew_with_other_tensors(make):
    output = make()
    before = [tensor.clone() for tensor in tensors_in(output)]
    again = rebuilt(output, lambda tensor: tensor + 1)
    assert type(again) is type(output)
    assert len(before) == len(tensors_in(again)) > 0
    for old, was, new in zip(before, tensors_in(output), tensors_in(again), strict=True):
        assert torch.equal(old, was)
        assert torch.equal(old + 1, new)


def test_what_a_mapping_has_besides_its_items_is_kept():
    assert rebuilt(defaultdict(list, a=ones()), lambda tensor: tensor).default_factory is list
    output = rebuilt(KINDS["model output"](), lambda tensor: tensor + 1)
    assert torch.equal(output.last_hidden_state, output["last_hidden_state"])


def test_a_container_inside_itself_ends_the_walk():
    ring = [1, {"a": 2}]
    ring.append(ring)
    assert len([inner for inner in values_in(ring) if inner is ring]) == 2
    joined = folded(ring, str, lambda _, parts: "+".join(parts), again=lambda _: "itself")
    assert joined == "1+2+itself"


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_outputs_are_compared_without_their_tensors(make):
    output = make()
    assert not is_opaque(output)
    assert apart_from_tensors(output) == apart_from_tensors(rebuilt(output, torch.zeros_like))
    assert apart_from_tensors(output) != apart_from_tensors([output, 1])


@pytest.mark.parametrize("value", [object(), {1, 2}, deque([1]), [Parts], {"a": (object(),)}])
def test_an_object_of_an_unknown_type_is_told(value):
    assert is_opaque(value)


def test_a_container_that_occurs_twice_is_not_taken_for_one_inside_itself():
    twin = [1]
    joined = folded([twin, twin], str, lambda _, parts: "+".join(parts), again=lambda _: "itself")
    assert joined == "1+1"
