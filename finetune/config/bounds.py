"""Numbers of a config: every one has a smallest and a largest value, told with its key.

The bounds keep out what no run can mean (10^14 samples, a time limit of 1e300 s), and what a library
would turn into an overflow, an endless loop or zero. They are wide: none should ever be met.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

MAX_COUNT = 10**9
"""Most of anything that is counted: steps, samples, units of a layer."""

Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
"""How many, at least one."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of random numbers: numpy takes no larger one."""
Rate = Annotated[float, Field(ge=1e-30, le=1e38)]
"""Learning rate. float32, which ends at 3e38, would take a much smaller one for zero."""
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
"""A factor or a distance. Its square is a double; float32 ends at 3e38."""
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
"""The same, or zero."""
Divisor = Annotated[float, Field(ge=1e-6, le=1e12)]
"""Divisor of a learning rate."""
Ratio = Annotated[float, Field(ge=1, le=1e6)]
"""Factor between two learning rates: the larger over the smaller."""
Gigabytes = Annotated[float, Field(gt=0, le=1e9)]
"""An amount of memory or disk. 1e9 GiB are less than 2^63 bytes."""
Seconds = Annotated[float, Field(ge=0.01, le=1e7)]
"""A length of time, at most some 115 days. Python's own limit on waiting is 2^63 ns."""

MAX_DIGITS = 18
"""Most digits of a number inside a text, such as a slice: any such number is below 2^63."""
MAX_NAME_BYTES = 200
"""Most bytes of a name that becomes the name of a folder, for which file systems take 255."""
MAX_ARGUMENTS = 100_000
"""Most numbers in an argument of a user's own code: as many values as a config may have."""
_MAX_ENTRIES = 1000
"""Most entries of a list among the arguments of a class."""


class Bounds(NamedTuple):
    """The smallest and the largest value of an argument, both allowed."""

    least: float
    most: float


_USUAL = {
    "layers": {"int": Bounds(-(10**7), 10**7), "float": Bounds(-1e30, 1e30)},
    "transforms": {"int": Bounds(-(10**6), 10**6), "float": Bounds(-1e6, 1e6)},
    "optimizers": {"int": Bounds(-(10**6), 10**6), "float": Bounds(-1e6, 1e6)},
}
"""Bounds of the arguments that `_OWN` does not name, by section of the catalogue and kind."""

_PIXELS = Bounds(-30_000, 30_000)
_SHARE = Bounds(0, 1)
_ROUNDS = Bounds(0, 99)
_OWN = {
    "layers": {
        **dict.fromkeys(
            ["num_layers", "num_encoder_layers", "num_decoder_layers"], Bounds(1, 1000)
        ),
        **dict.fromkeys(["p", "dropout"], _SHARE),
        "num_embeddings": Bounds(0, MAX_COUNT),
    },
    "transforms": {
        **dict.fromkeys(["size", "max_size", "min_size", "target_size"], _PIXELS),
        **dict.fromkeys(["kernel_size", "padding"], _PIXELS),
        **dict.fromkeys(["num_ops", "mixture_width", "chain_depth"], _ROUNDS),
        "num_magnitude_bins": Bounds(0, 10_000),
        "p": _SHARE,
    },
    # Powers with these exponents are taken in Python, where they would overflow.
    "optimizers": {
        **{"betas": _SHARE, "ns_steps": _ROUNDS},
        **{"alpha": Bounds(0, 10), "beta2_decay": Bounds(-10, 0)},
    },
}
"""Bounds of the arguments whose number says how often something is done, or how large a picture is."""


_OF_OWN_CODE = Bounds(-1e30, 1e30)


def bounds_of(section: str, argument: str, kind: str) -> Bounds:
    """Return the bounds of the numbers that an argument takes.

    Args:
        section: `layers`, `transforms` or `optimizers`.
        argument: Its name.
        kind: `int`, or `float` for any other.
    """
    return _OWN[section].get(argument) or _USUAL[section]["int" if kind == "int" else "float"]


def beyond(value: Any, bounds: Bounds, most: int = _MAX_ENTRIES) -> str | None:
    """Return what is wrong with the numbers of an argument: itself, and those in its lists."""
    numbers = list(_numbers(value))
    if len(numbers) > most:
        return f"takes at most {most} numbers"
    for number in numbers:
        # Not `or`: NaN is neither smaller nor larger than anything.
        if not bounds.least <= number <= bounds.most:
            wish = f"must be between {bounds.least:g} and {bounds.most:g}"
            return f"{number} {wish}" if isinstance(value, list | tuple | Mapping) else wish
    return None


def _bounded(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a user's own code, none of whose numbers is beyond all reason."""
    for name, value in arguments.items():
        if fault := beyond(value, _OF_OWN_CODE, most=MAX_ARGUMENTS):
            raise ValueError(f"{name!r}: {fault}")
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""Keyword arguments of a user's own code: numbers are bounded, and finite."""


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
