"""Selectors to parameter names: which parameters a list of selectors takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, assert_never

from pydantic import TypeAdapter, ValidationError

from finetune.config.selectors import (
    All,
    ByDepth,
    ByKind,
    ByName,
    ByRegex,
    ByRows,
    ByType,
    Not,
    Selector,
    normalise_selector,
)
from finetune.errors import Faults, Key, SelectorError, did_you_mean
from finetune.freezing.rows import rows_of, split_inventory
from finetune.models.inventory import ParamInfo, num_blocks
from finetune.patterns import TimeLimit

_ADAPTER: TypeAdapter[Selector] = TypeAdapter(Selector)


def select(
    selectors: Iterable[Selector | str | Mapping[str, Any]],
    inventory: Sequence[ParamInfo],
    *,
    key: Key = (),
) -> frozenset[str]:
    """Return the names that the selectors take, applied in order as in gitignore.

    A later entry overrules an earlier one: a plain entry takes names, one that begins with `!`
    (or `{not: ...}`) takes them out again. A tied parameter is found under each of its names and
    returned under the one that `named_parameters()` gives it.

    Args:
        selectors: Nodes, or their short forms as in YAML.
        inventory: The parameters to choose from.
        key: Config key of the selectors, for error messages.

    Raises:
        SelectorError: some selector takes nothing (a typo far more often than a wish, which would
            train what was meant to be frozen), or two of them wish opposite things of one tied
            tensor under its different names.
    """
    nodes = [parse_selector(selector, key=(*key, n)) for n, selector in enumerate(selectors)]
    # Cut first, so that a rows selector takes each name wholly or not at all.
    inventory = split_inventory(inventory, nodes, key=key)
    wishes: dict[_Label, int] = {}
    # One time limit for the list: many slow expressions share one second.
    faults, limit = Faults(), TimeLimit()
    for number, node in enumerate(nodes):
        with faults.noted():
            taken = _labels_taken(node, inventory, limit, key=(*key, number))
            _refuse_idle_not(node, taken, wishes, nodes, key=(*key, number))
            # The last entry that names a label decides on it.
            wishes |= dict.fromkeys(taken, number)
    with faults.noted():
        _refuse_conflicts(wishes, nodes, key)
    faults.raise_if_any()
    return frozenset(label.param.name for label in wishes if _is_taken(wishes, label, nodes))


def parse_selector(selector: Selector | str | Mapping[str, Any], *, key: Key = ()) -> Selector:
    """Return the node of a selector that is written as in YAML.

    Raises:
        SelectorError: it is not a selector.
    """
    try:
        return _ADAPTER.validate_python(normalise_selector(selector))
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        raise SelectorError(f"not a selector: {detail}, got {selector!r}", key=key) from error


def describe(selector: Selector) -> str:
    """Return a selector as text for a message: `'encoder'`, `{kind: bias}` or `not 'head'`."""
    match selector:
        case ByName(name=name):
            return repr(name)
        case Not(not_=inner):
            return f"not {describe(inner)}"
        case _:
            fields = ", ".join(f"{name}: {value}" for name, value in selector)
            return f"{{{fields}}}".replace("True", "true")


@dataclass(frozen=True, slots=True)
class _Label:
    """One name of a parameter; a tied one has several."""

    name: str
    param: ParamInfo


def _labels(inventory: Sequence[ParamInfo]) -> Iterator[_Label]:
    """Yield all names of all parameters."""
    for param in inventory:
        for name in (param.name, *param.aliases):
            yield _Label(name, param)


def _refuse_idle_not(
    node: Selector,
    taken: Sequence[_Label],
    before: Mapping[_Label, int],
    nodes: Sequence[Selector],
    *,
    key: Key,
) -> None:
    """Raise if a `not` entry takes out names that no entry before it takes."""
    held = {label.param.name for label in before if _is_taken(before, label, nodes)}
    if isinstance(node, Not) and not any(label.param.name in held for label in taken):
        raise SelectorError(
            f"{describe(node)} takes nothing out: no entry before it takes these parameters",
            hint="begin with {all: true} to mean everything but these",
            key=key,
        )


def _labels_taken(
    node: Selector, inventory: Sequence[ParamInfo], limit: TimeLimit, *, key: Key
) -> tuple[_Label, ...]:
    """Return the names that one entry takes or, with `not`, takes out."""
    positive = node.not_ if isinstance(node, Not) else node
    blocks = num_blocks(inventory)
    takes = _test_of(positive, tuple(_labels(inventory)), blocks, limit, key)
    taken = tuple(label for label in _labels(inventory) if takes(label))
    if not taken:
        raise SelectorError(
            f"{describe(positive)} takes no parameter",
            hint=_nearest(positive, inventory, blocks),
            key=key,
        )
    return taken


def _test_of(  # noqa: C901 - one case for each selector
    selector: Selector, labels: Sequence[_Label], blocks: int, limit: TimeLimit, key: Key
) -> Callable[[_Label], bool]:
    """Return a function that tells whether a selector takes one of `labels`."""
    match selector:
        case ByName(name=name):
            return lambda label: _name_takes(name, label.name)
        case ByRegex(regex=regex):
            fitting = limit.full_matches(regex, (label.name for label in labels), key=key)
            return lambda label: label.name in fitting
        case ByType(type=type_):
            return lambda label: type_ in label.param.types
        case ByKind(kind=kind):
            return lambda label: kind in label.param.kinds
        case ByDepth():
            depths = selector.depths(blocks)
            return lambda label: label.param.depth in depths
        case ByRows():
            return lambda label: _rows_take(selector, label)
        case All():
            return lambda label: True
        case Not(not_=inner):
            takes = _test_of(inner, labels, blocks, limit, key)
            return lambda label: not takes(label)
        case _:
            assert_never(selector)


def _name_takes(pattern: str, name: str) -> bool:
    """Tell whether a name, module name or glob takes a parameter or row slice."""
    # All slices of a parameter go by its name.
    name, _ = rows_of(name)
    if any(sign in pattern for sign in "*?["):
        # Not `fnmatch`, which ignores case on Windows.
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(f"{pattern}.")


def below_globbed_modules(pattern: str, inventory: Sequence[ParamInfo]) -> frozenset[str]:
    """Return the names of parameters in modules whose names match a glob.

    Names of parameters that match the glob themselves are left out. The set is empty if `pattern`
    is no glob.
    """
    if not any(sign in pattern for sign in "*?["):
        return frozenset()
    names = {label.name for label in _labels(inventory)}
    taken = {name for name in names if _name_takes(pattern, name)}
    return frozenset(name for name in names - taken if _name_takes(f"{pattern}.*", name))


def _rows_take(selector: ByRows, label: _Label) -> bool:
    """Tell whether a slice lies in the rows taken; a slice is wholly inside or wholly outside."""
    name, rows = rows_of(label.name)
    if name != selector.name or rows is None or label.param.slice_of is None:
        return False
    return rows.start in selector.indices(label.param.slice_of)


def _is_taken(wishes: Mapping[_Label, int], label: _Label, nodes: Sequence[Selector]) -> bool:
    """Tell whether the last entry that names a label takes it."""
    return label in wishes and not isinstance(nodes[wishes[label]], Not)


def _refuse_conflicts(wishes: Mapping[_Label, int], nodes: Sequence[Selector], key: Key) -> None:
    """Raise if entries take a tied tensor by one name and take it out by another."""
    verdicts: dict[str, dict[bool, _Label]] = {}
    for label in wishes:
        verdicts.setdefault(label.param.name, {})[_is_taken(wishes, label, nodes)] = label
    faults = Faults()
    for verdict in verdicts.values():
        # One tensor cannot be both: to follow either wish would break the other silently.
        if len(verdict) == 2:
            taken, left = verdict[True], verdict[False]
            message = (
                f"{taken.name!r} and {left.name!r} are one tied tensor, but "
                f"{describe(nodes[wishes[taken]])} takes it and {describe(nodes[wishes[left]])} "
                "takes it out"
            )
            place = (*key, max(wishes[taken], wishes[left]))
            error = SelectorError(message, hint="wish the same for both names", key=place)
            faults.add([error])
    faults.raise_if_any()


def _nearest(selector: Selector, inventory: Sequence[ParamInfo], blocks: int) -> str | None:
    """Return a hint for a selector that takes nothing; None if there is nothing to say."""
    match selector:
        case ByName(name=name) if below := below_globbed_modules(name, inventory):
            return (
                f"a glob takes names of parameters: {f'{name}.*'!r} takes the {len(below)} below "
                "modules of such names"
            )
        case ByName(name=name):
            return did_you_mean(name, _all_names(inventory)) or (
                f"names begin with {', '.join(_first_segments(inventory))}"
            )
        case ByType(type=type_):
            known = {name for param in inventory for name in param.types}
            return did_you_mean(type_, known) or f"known: {', '.join(sorted(known))}"
        case ByDepth():
            return (
                f"the model has {blocks} blocks: depths 0 to {blocks - 1}"
                if blocks
                else ("the model has no blocks")
            )
        case ByRegex():
            return "the expression must match a full name from end to end"
        case _:
            return None


def _all_names(inventory: Sequence[ParamInfo]) -> list[str]:
    """Names of parameters and of the modules above them, each once."""
    names: dict[str, None] = {}
    for label in _labels(inventory):
        parts = label.name.split(".")
        names |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return list(names)


def _first_segments(inventory: Sequence[ParamInfo]) -> list[str]:
    return list(dict.fromkeys(param.name.partition(".")[0] for param in inventory))
