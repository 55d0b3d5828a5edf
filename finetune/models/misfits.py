"""Turn torch's errors about shapes and values in a forward pass into one line about layer and data.

Nothing here runs unless an exception was raised.
"""

import dis
import re
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import ModelError, is_out_of_memory
from finetune.models.shapes import beyond_positions, describe, first_line, whole_numbers

_ABOUT_DATA = re.compile(
    r"\bsizes?\b|\bshapes?\b|dimension|\bdims?\b|must match|out of (range|bounds)|\bdtypes?\b"
    r"|scalar type|channels?\b|value per channel|expected input|spatial element"
    r"|not implemented for '",
    re.IGNORECASE,
)
"""Words in torch's messages about shapes, types and values of tensors."""
_TYPES = (RuntimeError, IndexError, ValueError, AssertionError, NotImplementedError)
"""Types of error that torch raises: attention asserts widths, kernels lack number types."""
_OF_PYTHON = ("list ", "tuple ", "string ", "range ", "pop ")
"""Beginnings of Python's own index errors: these are bugs, not a misfit of data."""
_LIBRARIES = ("torch", "transformers", "timm", "torchvision")
"""Packages whose own checks (`raise ValueError`) are about their input."""


def name_sample(error: ModelError, place: str) -> None:
    """Replace in an error's message the sample's position in the batch by its place in the data."""
    if error.sample is not None:
        error.message = error.message.replace(_in_batch(error.sample), place)


def _in_batch(sample: int) -> str:
    """Return a sample's position in the batch, counted from 1, as text."""
    return f"sample {sample + 1} of the batch"


class _Call(NamedTuple):
    """The innermost module that was running, with its input tensors."""

    name: str
    module: nn.Module
    tensors: tuple[Tensor, ...]


def misfit(error: Exception, model: nn.Module, columns: Mapping[str, object]) -> ModelError | None:
    """Return an error about layer and data for an exception of a forward pass; None for a bug.

    A bug is anything that is not about shapes, types and values of tensors, and anything that code
    outside the known libraries raises itself.

    Args:
        error: The exception, raised below `model`.
        model: The network.
        columns: Its input, by column.
    """
    # Exactly these types: a subclass is somebody's own error, and more telling as it is.
    if type(error) not in _TYPES or is_out_of_memory(error):
        return None
    text = str(error)
    is_about_data = _ABOUT_DATA.search(text) is not None and not text.startswith(_OF_PYTHON)
    if not is_about_data or _is_raised_by_others(error):
        return None
    call = _innermost_call(error, model)
    if call is None:
        return None
    label = f"layer {call.name or 'network'!r} ({type(call.module).__name__})"
    key = ("model", "layers")
    for name, module in model.named_modules():
        whole = f"layer {name!r} ({type(module).__name__})"
        is_around = name and f"{call.name}.".startswith(f"{name}.")
        if is_around and (long := beyond_positions(module, columns.values(), whole, key)):
            return long
    found = _beyond(call.module, call.tensors, columns)
    if found is not None:
        told = ModelError(f"{label}: {found.message}", hint=_EMBEDDING, key=key)
        told.sample = found.sample
        return told
    if isinstance(call.module, _BatchNorm) and "value per channel" in text:
        message = f"{label}: a batch of one sample has no statistics to train by"
        return ModelError(f"{message}, got {describe(*call.tensors)}", hint=DROP_LAST, key=key)
    named = ", ".join(f"{name!r} {describe(value)}" for name, value in columns.items())
    message = f"{label}: cannot take {describe(*call.tensors)}: {first_line(error)}"
    hint = whole_numbers(error, call.tensors) or f"the network was given {named}"
    return ModelError(message, hint=hint, key=key)


DROP_LAST = "train.drop_last: true leaves out the last, smaller batch; micro_batch must be above 1"
"""Remedy for a batch of one sample in front of a trained batch norm."""
_EMBEDDING = "a larger num_embeddings, the tokenizer that belongs to the network, or other values"


class _Beyond(NamedTuple):
    """A value that is not a row of an embedding table."""

    message: str
    sample: int | None
    """Index in the batch, if the value is in an input column."""


def _beyond(
    table: nn.Module, given: tuple[Tensor, ...], columns: Mapping[str, object]
) -> _Beyond | None:
    """Return the first index that an embedding table has no row for, or None.

    Args:
        table: A module; anything but an embedding gives None.
        given: Its arguments.
        columns: The batch, in which the column with that index is looked for.
    """
    ids = next((one for one in given if not one.is_floating_point()), None)
    if not isinstance(table, nn.Embedding | nn.EmbeddingBag):
        return None
    size = table.num_embeddings
    if ids is None or not bool((wrong := (ids < 0) | (ids >= size)).any()):
        return None
    place = wrong.nonzero()[0]
    value = int(ids[tuple(place)])
    where, sample = "", None
    for name, column in columns.items():
        is_it = isinstance(column, Tensor) and column.shape == ids.shape
        # By value: the table may get a copy of the column, or what a layer before made of it.
        if is_it and torch.equal(torch.as_tensor(column), ids):
            sample = int(place[0])
            where = f" of column {name!r}, {_in_batch(sample)},"
    message = f"value {value}{where} is beyond its table of {size} rows (0 to {size - 1})"
    return _Beyond(message, sample)


def _innermost_call(error: Exception, model: nn.Module) -> _Call | None:
    """Return the innermost module of the network whose `forward` is in the traceback, or None."""
    names = {id(module): name for name, module in model.named_modules()}
    found: _Call | None = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        code, values = frame.f_code, frame.f_locals
        module = values.get("self")
        # Hooks and `__call__` of torch have a `self` as well; only `forward` has the layer's own
        # arguments.
        if code.co_name != "forward" or not isinstance(module, nn.Module):
            continue
        if id(module) in names:
            arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            given = (values.get(name) for name in arguments)
            tensors = tuple(value for value in given if isinstance(value, Tensor))
            found = _Call(names[id(module)], module, tensors)
    return found


def _is_raised_by_others(error: Exception) -> bool:
    """Tell whether a `raise` outside the known libraries raised it, not an operation of torch."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    if package in _LIBRARIES:
        return False
    # An operation in C raises from a call instruction, a line `raise` from its own: the bytecode
    # tells.
    instructions = dis.get_instructions(trace.tb_frame.f_code)
    last = next((one for one in instructions if one.offset == trace.tb_lasti), None)
    return last is not None and last.opname in ("RAISE_VARARGS", "RERAISE")
