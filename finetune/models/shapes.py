"""Take sizes from the input of a layer, and report plainly if it does not fit."""

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import Key, ModelError, in_words, is_out_of_memory, message_of
from finetune.redaction import redacted

# Letters: N samples, C channels, L, D, H and W length, depth, height and width, T tokens. The axis
# of its input that each argument of a constructor gives the size of:
_SIZE_AXES = {
    "in_features": -1,
    "in_channels": 1,
    "num_features": 1,
    "num_channels": 1,
    "input_size": -1,
    "normalized_shape": -1,
    "embed_dim": -1,
    "d_model": -1,
    "in1_features": -1,
    "in2_features": -1,
}
_FORMS = {"1d": "(N, C, L)", "2d": "(N, C, H, W)", "3d": "(N, C, D, H, W)"}
_SEQUENCES = ("RNN", "LSTM", "GRU", "MultiheadAttention", "TransformerEncoderLayer")
_TWO_FORMS = {"BatchNorm1d": "(N, C) or (N, C, L)"}
_SHAPE_FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AssertionError,
    AttributeError,
    KeyError,
    MemoryError,
    ArithmeticError,
)


def describe(*values: object) -> str:
    """Return shapes as text, `(2, 8) and (2, 4) of int64`; the type float32 is left out."""
    return " and ".join(_one(value) for value in values) or "nothing"


def _one(value: object) -> str:
    """Return the shape and type of one value as text."""
    if value is None:
        return "none"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.dtype == torch.float32 else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{tuple(value.shape)}{kind}"


def check_tensors(incoming: Sequence[object], *, label: str, key: Key) -> tuple[Tensor, ...]:
    """Return the inputs of a layer; raise `ModelError` unless all are tensors."""
    if not all(isinstance(value, Tensor) for value in incoming):
        several = any(isinstance(value, list | tuple | Mapping) for value in incoming)
        raise ModelError(
            f"{label}: takes tensors, got {describe(*incoming)}",
            hint="take one of the outputs of a layer by inputs: [NAME.0]" if several else None,
            key=key,
        )
    return tuple(value for value in incoming if isinstance(value, Tensor))


def check_form(class_name: str, incoming: Sequence[Tensor], *, label: str, key: Key) -> None:
    """Raise if a class of `torch.nn` would take an input, by its number of axes, for one sample.

    torch takes `(N, H, W)` for one image with N channels. Here the first axis is always samples.
    """
    form = _TWO_FORMS.get(class_name) or _FORMS.get(class_name[-2:])
    if class_name in _SEQUENCES:
        form = "(N, T, C)"
    if form is None:
        return
    axes = {one.count(",") + 1 for one in re.findall(r"\(.*?\)", form)}
    for tensor in incoming[:1]:
        if tensor.ndim not in axes:
            raise ModelError(
                f"{label}: takes {form}, got {describe(tensor)}",
                hint=_one_more_axis(form, tensor),
                key=key,
            )


def _one_more_axis(form: str, tensor: Tensor) -> str | None:
    """Return the hint for a layer of sequences that gets plain vectors `(N, D)`, or None."""
    if tensor.ndim != 2 or form not in ("(N, C, L)", "(N, T, C)"):
        return None
    if not tensor.is_floating_point():
        return (
            "a layer before it looks whole numbers up, such as token ids, which gives (N, T, C): "
            "{type: Embedding, num_embeddings: ..., embedding_dim: ...}"
        )
    size = tensor.shape[1]
    sizes, what = ([1, size], " of one channel") if form == "(N, C, L)" else ([size, 1], "")
    layer = f"{{type: Unflatten, dim: 1, unflattened_size: {sizes}}}"
    return f"a layer before it makes {size} numbers a sequence{what}: {layer}"


def infer_sizes(
    cls: type[nn.Module],
    arguments: Mapping[str, Any],
    incoming: Sequence[Tensor],
    *,
    label: str,
    key: Key,
) -> dict[str, int]:
    """Return the input sizes that `arguments` leaves out, taken from the layer's input.

    Raises:
        ModelError: a size that is given differs from the input's.
    """
    sizes: dict[str, int] = {}
    for name, parameter in constructor_parameters(cls).items():
        axis = _SIZE_AXES.get(name)
        # A bilinear layer is the only one with two inputs.
        position = 1 if name == "in2_features" else 0
        if axis is None or position >= len(incoming):
            continue
        tensor, given = incoming[position], arguments.get(name, parameter.default)
        if tensor.ndim < 2:
            raise ModelError(
                f"{label}: takes (N, ..., C), got {describe(tensor)}",
                hint="a column of single numbers becomes (N, 1) by data.transforms: "
                "[{type: stack}]",
                key=key,
            )
        if given is inspect.Parameter.empty:
            sizes[name] = tensor.shape[axis]
        elif isinstance(given, int) and given != tensor.shape[axis]:
            wish = f"(..., {given})" if axis == -1 else f"(N, {given}, ...)"
            raise ModelError(
                f"{label}: takes {wish}, got {describe(tensor)}",
                hint=f"leave out {name}: it is read off what comes in"
                if name in arguments
                else None,
                key=(*key, name),
            )
    return sizes


def constructor_parameters(cls: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    """Return the named parameters of a class's constructor.

    `LSTM.__init__` takes only `*args, **kwargs`; then those of its base class are returned.
    """
    for base in cls.__mro__:
        parameters = dict(inspect.signature(base).parameters)
        if any(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters.values()):
            return parameters
    return {}


def try_out(
    module: nn.Module,
    arguments: Sequence[object],
    keywords: Mapping[str, object] | None = None,
    *,
    label: str,
    key: Key,
    foreign: bool = False,
) -> Any:
    """Return the output of `module` for an example, without a graph.

    The module is left in evaluation mode, so that no statistics change; torch's random state is
    restored.

    Args:
        module: The layer.
        arguments: Inputs by position.
        keywords: Inputs by name.
        label: The layer's name in messages.
        key: Its position in the config.
        foreign: Whether it is the user's code. Then only torch's own errors and a wrong call become
            a `ModelError`; any other exception keeps its traceback.

    Raises:
        ModelError: it cannot take its input.
    """
    keywords = keywords or {}
    # From torch's classes any of these is about sizes; from the user's code most of them are bugs.
    faults = (RuntimeError,) if foreign else _SHAPE_FAULTS
    if foreign:
        check_call(module.forward, arguments, keywords, label=label, key=key)
    try:
        # Dropout in user code may draw without a module: initial weights must not depend on it.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
            return module.eval()(*arguments, **keywords)
    except faults as error:
        too_large = "its output needs more memory than there is" if is_too_large(error) else None
        given = (*arguments, *keywords.values())
        if (told := beyond_positions(module, given, label, key)) is not None:
            raise told from error
        raise ModelError(
            f"{label}: cannot take {describe(*given)}: {too_large or first_line(error)}",
            hint=f"raised at {_place(error)}" if foreign else whole_numbers(error, given),
            key=key,
        ) from error


_OF_TYPES = re.compile(
    r"same dtype|should be the same|scalar type|for '(Long|Int|Short|Char|Byte|Bool)'|float"
)
"""Words in torch's messages about whole numbers where it needs numbers with fractions."""


def whole_numbers(error: BaseException, given: Iterable[object]) -> str | None:
    """Return the hint for a layer that computes with fractions and got whole numbers, or reversed.

    Args:
        error: What torch raised.
        given: The layer's inputs.
    """
    tensors = [one for one in given if isinstance(one, Tensor)]
    if "'indices'" in str(error) and all(one.is_floating_point() for one in tensors):
        return (
            "a table looks up whole numbers, without {type: stack}, which makes them floats; words "
            "become some by data.transforms: [{type: categories, columns: [...], as: index}]"
        )
    if not any(not one.is_floating_point() for one in tensors) or not _OF_TYPES.search(str(error)):
        return None
    if any(one.ndim > 2 for one in tensors):
        return (
            "whole numbers become float32 by columns: {NAME: {dtype: float32}} of the source; "
            "dtype: uint8 reads 0..255 as 0..1"
        )
    return (
        "whole numbers become float32 by data.transforms: [{type: stack}], or by columns: "
        "{NAME: {dtype: float32}} of a source of arrays; a layer Embedding looks them up"
    )


def beyond_positions(
    module: nn.Module, given: Iterable[object], label: str, key: Key
) -> ModelError | None:
    """Return an error if samples have more tokens than a network has positions; else None.

    Args:
        module: The network; only those of `transformers` say how many positions they have.
        given: Its inputs.
        label: The layer's name in messages.
        key: Its position in the config.
    """
    most = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    ids = [one for one in given if isinstance(one, Tensor) and not one.is_floating_point()]
    widths = [one.shape[1] for one in ids if one.ndim == 2]
    if not isinstance(most, int) or max(widths, default=0) <= most:
        return None
    return ModelError(
        f"{label}: has positions for {most} tokens, a sample has {max(widths)}",
        hint=f"data.transforms: [{{type: tokenize, max_length: {most}}}] cuts texts to as many",
        key=key,
    )


def check_call(
    function: Callable[..., Any],
    arguments: Sequence[object],
    keywords: Mapping[str, object],
    *,
    label: str,
    key: Key,
) -> None:
    """Raise `ModelError` if a call does not fit the signature of `function`; do not call it."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Functions written in C may have no signature.
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ModelError(f"{label}: {error}; its signature is {signature}", key=key) from error


def is_too_large(error: BaseException) -> bool:
    """Tell whether an error means that a tensor exceeds memory, or the sizes torch can count."""
    told = str(error)
    return (
        is_out_of_memory(error)
        or "Storage size calculation overflowed" in told
        or ("verflow when unpacking" in told)
    )


def first_line(error: BaseException) -> str:
    """Return the first telling line of an error's message, redacted, at most 200 characters.

    Classes are written by name, as `ViTConfig`. A line that ends with a colon is joined with the
    next one.
    """
    lines = redacted(message_of(error)).strip().splitlines() or [type(error).__name__]
    if lines[0].rstrip().endswith(":"):
        lines[0] = " ".join(line.strip() for line in lines[:2])
    return in_words(lines[0]).rstrip(". ")[:200]


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame outside torch, as text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename.replace("\\", "/")]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
