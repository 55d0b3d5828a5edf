"""Judge the values of pretrained tensors: their number types, NaN and infinity."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from finetune.errors import Key, ModelError

_HINT = "load a file of floats: quantised numbers mean nothing without their scales"


def refuse_other_numbers(
    theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str, *, key: Key
) -> None:
    """Raise if a file has whole numbers, truth values or floats of 8 bits where floats belong.

    Torch copies them as they are. Quantised files hold such numbers, and their scales elsewhere.

    Args:
        theirs: Tensors of the file, by their names in the module.
        own: Tensors of the module.
        path: Name of the file or folder in the message.
        key: Position of the config value that asked for it.

    Raises:
        ModelError: a tensor has such numbers.
    """
    wrong = [n for n, t in theirs.items() if n in own and _is_other_number(t, own[n])]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{path!r} has other numbers than the network in {len(wrong)} of {len(theirs)} "
            f"tensors: {name} is {_type_of(theirs[name])}, wants {_type_of(own[name])}",
            hint=_HINT,
            key=key,
        )


def conversion(pairs: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Return a text on how many tensors were converted, or none if no tensor was.

    Args:
        pairs: Each loaded tensor of a file, and the module's tensor that got its values.
    """
    types = Counter[tuple[str, str]]()
    num_all = 0
    for theirs, own in pairs:
        num_all += 1
        if theirs.dtype != own.dtype:
            types[_type_of(theirs), _type_of(own)] += 1
    told = [f"{count} of {num_all} converted from {a} to {b}" for (a, b), count in types.items()]
    return "".join(f", {one}" for one in told)


def nothing_but_zeros(tensors: Mapping[str, Tensor]) -> str:
    """Return a text on how many loaded matrices are zero throughout, or none if no one is.

    A download that was cut off, or a sparse copy, has such values. So has what a network never
    uses, such as the token types of RoBERTa: it is told and not refused.
    """
    empty = [name for name, t in tensors.items() if t.ndim > 1 and t.numel() and not t.any()]
    if not empty:
        return ""
    return f", {len(empty)} of {len(tensors)} hold nothing but zeros, such as {empty[0]}"


def not_finite(module: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of these parameters that have a NaN or an infinity.

    Buffers may have them: masks of attention hold minus infinity.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    return tuple(n for n in names if n in own and not _is_finite(own[n].detach()))


def _is_finite(values: Tensor) -> bool:
    """Tell whether all values are finite."""
    # A finite sum has finite parts, and is several times faster. That of large values may overflow.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _is_other_number(theirs: Tensor, own: Tensor) -> bool:
    """Tell whether a tensor's numbers mean something else as values of the module's tensor."""
    if not own.is_floating_point() or theirs.dtype == own.dtype:
        return False
    return not theirs.is_floating_point() or theirs.dtype.itemsize < 2


def _type_of(tensor: Tensor) -> str:
    """Return a number type as text, such as `float16`."""
    return str(tensor.dtype).removeprefix("torch.")
