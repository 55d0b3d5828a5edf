"""Bounds on numbers of a config: each has a smallest and a largest value, reported with its key.

They keep out what no run can mean (10^14 samples, a time limit of 1e300 s), and what a library
would turn into an overflow, an endless loop or zero. They are wide: no honest config meets one.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

MAX_COUNT = 10**9
"""Most of anything that can be counted: steps, samples, units of a layer."""

Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
"""A count of at least one."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed for random numbers; numpy accepts none larger."""
Rate = Annotated[float, Field(ge=1e-30, le=1e38)]
"""Learning rate. float32 ends at 3e38, and turns much smaller values into zero."""
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
"""A factor or distance. Its square must fit into a double; float32 ends at 3e38."""
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
"""A factor or distance, or zero."""
Divisor = Annotated[float, Field(ge=1e-6, le=1e12)]
"""Divisor of a learning rate."""
Ratio = Annotated[float, Field(ge=1, le=1e6)]
"""Factor between two learning rates: the larger over the smaller."""
Gigabytes = Annotated[float, Field(gt=0, le=1e9)]
"""An amount of memory or disk. 1e9 GiB in bytes is less than 2^63."""
Seconds = Annotated[float, Field(ge=0.01, le=1e7)]
"""A time span of at most some 115 days. Python's own limit on waiting is 2^63 ns."""

MAX_DIGITS = 18
"""Most digits of a number inside a text, such as a slice: each such number is below 2^63."""
MAX_PIXEL = 2**15 - 1
"""Largest number of a pixel in a mask: masks are kept in 16 bits."""
MAX_NAME_BYTES = 200
"""Most bytes of a name that becomes a folder's name; file systems allow 255."""
MAX_ARGUMENTS = 100_000
"""Most numbers in an argument of user code: as many as the values that a config may have."""
_MAX_ENTRIES = 1000
"""Most numbers in a list that is an argument of a library's class."""


class Bounds(NamedTuple):
    """Smallest and largest value of an argument, both allowed."""

    least: float
    most: float


_USUAL = {
    "layers": {"int": Bounds(-(10**7), 10**7), "float": Bounds(-1e30, 1e30)},
    "transforms": {"int": Bounds(-(10**6), 10**6), "float": Bounds(-1e6, 1e6)},
    "optimizers": {"int": Bounds(-(10**6), 10**6), "float": Bounds(-1e6, 1e6)},
    # Sizes of tables (thresholds, bins), places of a ranking, powers.
    **{
        f"metrics_of_{form}": {"int": Bounds(0, 10_000), "float": Bounds(-1000, 1000)}
        for form in ("classes", "labels", "numbers")
    },
}
"""Bounds for arguments that `_OWN` does not name, by section of the catalogue and kind of number."""

# An image of 30,000 x 30,000 in float32 takes 10 GB; negative values occur as paddings.
_PIXELS = Bounds(-30_000, 30_000)
_SHARE = Bounds(0, 1)
_ROUNDS = Bounds(0, 99)
# Each of these is a size, a number of rounds or a share: one that is too large would exhaust memory
# or time, and a share beyond 1 fails deep inside torch.
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
    # Python raises numbers to these powers, which would overflow for large exponents.
    "optimizers": {
        **{"betas": _SHARE, "ns_steps": _ROUNDS},
        **{"alpha": Bounds(0, 10), "beta2_decay": Bounds(-10, 0)},
    },
}
"""Bounds for arguments that say how often something is done, or how large an image is."""


_OF_OWN_CODE = Bounds(-1e30, 1e30)


def bounds_of(section: str, argument: str, kind: str) -> Bounds:
    """Return the bounds for numbers given to an argument.

    Args:
        section: A section of `catalogue.json`.
        argument: Name of the argument.
        kind: `int`, or `float` for any other kind.
    """
    return (
        _OWN.get(section, {}).get(argument) or _USUAL[section]["int" if kind == "int" else "float"]
    )


def beyond(value: Any, bounds: Bounds, most: int = _MAX_ENTRIES) -> str | None:
    """Return what is wrong with an argument's numbers, also those in its lists; None if nothing."""
    numbers = list(_numbers(value))
    if len(numbers) > most:
        return f"takes at most {most} numbers"
    for number in numbers:
        # One comparison, not two with `or`: NaN is neither smaller nor larger than anything.
        if not bounds.least <= number <= bounds.most:
            wish = f"must be between {bounds.least:g} and {bounds.most:g}"
            return f"{number} {wish}" if isinstance(value, list | tuple | Mapping) else wish
    return None


def _bounded(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of user code unchanged; raise if one of their numbers is out of bounds."""
    for name, value in arguments.items():
        if fault := beyond(value, _OF_OWN_CODE, most=MAX_ARGUMENTS):
            raise ValueError(f"{name!r}: {fault}")
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""Keyword arguments for user code; their numbers are bounded and finite."""


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield a value if it is a number, or the numbers inside it."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    # For Python a bool is an int.
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
