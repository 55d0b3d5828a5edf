"""Notes on freezing that is valid, but may not do what the user means. None is an error."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from finetune.config.freeze import Freeze, FreezeConfig, Gradual, Method, Ulmfit
from finetune.config.selectors import All, ByDepth, ByName, ByRegex, Not, Selector
from finetune.errors import Key, SelectorError
from finetune.freezing.plan import Plan
from finetune.freezing.select import below_globbed_modules, describe, select
from finetune.models.inventory import ParamInfo, num_blocks

_INDEX_AND_STAR = re.compile(r"\d(\*)")
"""A star right behind a number, which also takes longer numbers."""
_INDEX_AND_ANY = re.compile(r"\d(\.[*+])")
"""The same in a regular expression."""
_LOOSE_WORD = re.compile(r"\*([A-Za-z_]{3,})\*")
"""A word between stars, which is a part of a name."""


@dataclass(frozen=True, slots=True)
class Lint:
    """One note."""

    key: Key
    """Key of the config value that the note is about."""
    message: str
    hint: str


def find_lints(freeze: Freeze | None, plan: Plan) -> tuple[Lint, ...]:
    """Return notes on the selectors and rates that a person wrote.

    They are about: a pattern that takes block 10 beside block 1, a selector that later ones
    overrule wholly, a part of a name that misses similar modules of other blocks, a glob that names
    modules and takes nothing below them, a depth beyond the blocks, a tied tensor taken by one of
    its names, a rate that nothing uses, and batch norms that a later phase thaws, which changes the
    features for all layers behind them. Errors of the plan (a selector that takes nothing, a rate
    for a frozen parameter) are not repeated here.

    Args:
        freeze: From the config. Of a method, only the head was written by a person.
        plan: The resolved phases.
    """
    if isinstance(freeze, FreezeConfig):
        found = list(_lints_of_phases(freeze, plan))
    elif freeze is not None:
        found = list(_lints_of(freeze.head or (), plan.inventory, ("freeze", "head")))
        found += _all_at_once(freeze, num_blocks(plan.inventory))
    else:
        found = []
    found += _thawed_statistics(freeze, plan)
    return tuple(dict.fromkeys(found))


def _lints_of_phases(freeze: FreezeConfig, plan: Plan) -> Iterator[Lint]:
    """Yield the notes on selectors and rates of written phases."""
    usual = False
    for number, phase in enumerate(freeze.phases):
        key = ("freeze", "phases", number)
        field = "freeze" if phase.train is None else "train"
        yield from _lints_of(getattr(phase, field) or (), plan.inventory, (*key, field))
        for pattern in phase.lr:
            here, node = (*key, "lr", pattern), ByName(name=pattern)
            yield from _takes_longer_index(node, plan.inventory, here)
            # A rate for some parameters of a module says nothing of the others, so none is excused.
            yield from _stops_at_modules(node, plan.inventory, frozenset(), here)
        frozen = plan.phases[number].frozen
        taken = {name: select([name], plan.inventory) - frozen for name in phase.lr}
        yield from _unused_rates(taken, (*key, "lr"))
        every = {param.name for param in plan.inventory}
        # Whether some parameter trains at `optimizer.lr`, by no rate of the phase.
        usual = usual or bool(every - frozen - frozenset().union(*taken.values()))
    if not usual:
        yield Lint(
            ("optimizer", "lr"),
            "no parameter uses this rate: every phase has others for all that it trains",
            "the rates below freeze.phases are what counts",
        )


def _all_at_once(method: Method, blocks: int) -> Iterator[Lint]:
    """Yield a note if one phase thaws more blocks than the network has."""
    # A network without blocks counts as one.
    if isinstance(method, Gradual | Ulmfit) and method.blocks_per_phase > max(1, blocks):
        yield Lint(
            ("freeze", "blocks_per_phase"),
            f"blocks_per_phase {method.blocks_per_phase} is more than the {blocks} blocks of the "
            "network: all of them are thawed at once",
            "a smaller one thaws them one after the other",
        )


def _lints_of(
    nodes: Sequence[Selector], inventory: Sequence[ParamInfo], key: Key
) -> Iterator[Lint]:
    """Yield the notes on one list of selectors."""
    yield from _overruled(nodes, inventory, key)
    every = frozenset[str]().union(*(_spoken_of(node, inventory) for node in nodes))
    for number, node in enumerate(nodes):
        here, positive = (*key, number), node.not_ if isinstance(node, Not) else node
        yield from _takes_longer_index(positive, inventory, here)
        yield from _stops_at_modules(positive, inventory, every, here)
        yield from _beyond_the_blocks(positive, inventory, here)
        yield from _misses_siblings(positive, inventory, every, here)
        yield from _one_name_of_tied(positive, inventory, every, here)


def _takes_longer_index(node: Selector, inventory: Sequence[ParamInfo], key: Key) -> Iterator[Lint]:
    """Yield a note on a pattern such as `layer.1*`, which takes `layer.10` as well."""
    match node:
        case ByName(name=text):
            found, as_one, as_longer = _INDEX_AND_STAR.search(text), ".*", "[0-9]*"
        case ByRegex(regex=text):
            found, as_one, as_longer = _INDEX_AND_ANY.search(text), r"\..*", r"\d.*"
        case _:
            return
    if found is None:
        return
    # The pattern is tried twice: with the number as it is, and with a digit behind it.
    before, behind = text[: found.start(1)], text[found.end(1) :]
    # Before a dot the number has ended: the first reading then needs no pattern of its own.
    ends_there = behind.startswith((".", r"\."))
    as_one = before + ("" if ends_there else as_one) + behind
    one, longer = (
        _taken(ByName(name=each) if isinstance(node, ByName) else ByRegex(regex=each), inventory)
        for each in (as_one, before + as_longer + behind)
    )
    if one and longer:
        yield Lint(
            key,
            f"{text!r} takes {_up_to(before, one)}, but {_blocks(before, longer)} as well",
            f"{as_one!r} takes only the first; {{depth: ...}} counts blocks",
        )


def _stops_at_modules(
    node: Selector, inventory: Sequence[ParamInfo], every: frozenset[str], key: Key
) -> Iterator[Lint]:
    """Yield a note on a glob that names modules, but takes no parameter below them.

    Parameters that another entry names are not counted.
    """
    if not isinstance(node, ByName):
        return
    missed = below_globbed_modules(node.name, inventory) - every
    if missed:
        yield Lint(
            key,
            f"{node.name!r} takes {len(_taken(node, inventory))} parameters, and none of the "
            f"{len(missed)} below modules of such names, as {min(missed)}",
            f"{f'{node.name}.*'!r} takes these: a glob stands for parameters, a name without "
            "wildcards for a whole module",
        )


def _beyond_the_blocks(node: Selector, inventory: Sequence[ParamInfo], key: Key) -> Iterator[Lint]:
    """Yield a note on a slice of depths that goes beyond the blocks: it is cut, as in Python."""
    # A single depth beyond the blocks takes nothing, which is an error already.
    if not isinstance(node, ByDepth) or ":" not in node.depth:
        return
    blocks = num_blocks(inventory)
    start, stop = (int(part) if part else 0 for part in node.depth.split(":"))
    if max(start, stop) <= blocks and min(start, stop) >= -blocks:
        return
    taken = node.depths(blocks)
    yield Lint(
        key,
        f"{describe(node)} goes beyond the {blocks} blocks of the network, 0 to {blocks - 1}: "
        f"it takes {len(taken)} of them",
        f'write the depth that is meant, as {{depth: "{taken.start}:{taken.stop}"}}',
    )


def _overruled(
    nodes: Sequence[Selector], inventory: Sequence[ParamInfo], key: Key
) -> Iterator[Lint]:
    """Yield a note on each entry whose parameters are all decided by later entries."""
    taken = [_spoken_of(node, inventory) for node in nodes]
    for number, node in enumerate(nodes):
        later = [n for n in range(number + 1, len(nodes)) if taken[n] & taken[number]]
        if later and taken[number] <= frozenset().union(*(taken[n] for n in later)):
            who = " and ".join(describe(nodes[n]) for n in later)
            yield Lint(
                (*key, number),
                f"{describe(node)} has no effect: {who} after it decides on all that it takes",
                "later entries overrule earlier ones; leave it out, or move it to the end",
            )


def _misses_siblings(
    node: Selector, inventory: Sequence[ParamInfo], every: frozenset[str], key: Key
) -> Iterator[Lint]:
    """Yield a note if `*attn*` takes some blocks and misses what others call `attention`.

    Only for a glob with one word between stars, and only for names that the word abbreviates or
    that abbreviate the word: a wider rule would give false notes.
    """
    if not isinstance(node, ByName) or (found := _LOOSE_WORD.search(node.name)) is None:
        return
    word, taken = found.group(1).strip("_").lower(), _taken(node, inventory)
    # A name that some other entry names is left out on purpose.
    known = {segment for name in every for segment in name.split(".")}
    missed: dict[str, str] = {}
    for label in _labels(inventory):
        for segment in set(label.name.split(".")) - known:
            if _is_short_for(word, segment.lower()) or _is_short_for(segment.lower(), word):
                missed.setdefault(segment, label.name)
    if taken and missed:
        others = ", ".join(f"{segment!r} (as in {name})" for segment, name in missed.items())
        yield Lint(
            key,
            f"{node.name!r} misses what is called {others}",
            "name the modules, or take them by {type: ...}",
        )


def _one_name_of_tied(
    node: Selector, inventory: Sequence[ParamInfo], every: frozenset[str], key: Key
) -> Iterator[Lint]:
    """Yield a note on a tied tensor that an entry takes by only one of its names."""
    # `all` takes every name of a tied tensor.
    if isinstance(node, All):
        return
    taken = _taken(node, inventory)
    for param in inventory:
        names = (param.name, *param.aliases)
        own = next((name for name in names if name in taken), None)
        others = [name for name in names if name not in every]
        if others and own is not None:
            yield Lint(
                key,
                f"{describe(node)} takes {own}, which is tied: {', '.join(others)} "
                f"{'is' if len(others) == 1 else 'are'} the same tensor",
                "they are frozen and trained together",
            )


def _unused_rates(taken: Mapping[str, frozenset[str]], key: Key) -> Iterator[Lint]:
    """Yield a note on each rate that later entries overrule for every trained parameter."""
    patterns = list(taken)
    for place, pattern in enumerate(patterns):
        later = frozenset().union(*(taken[other] for other in patterns[place + 1 :]))
        if taken[pattern] <= later:
            yield Lint(
                (*key, pattern),
                f"no parameter uses the rate of {pattern!r}: entries after it overrule it",
                "put wider patterns first, narrower ones after them",
            )


def _thawed_statistics(freeze: Freeze | None, plan: Plan) -> Iterator[Lint]:
    """Yield a note on the first phase that thaws batch norms: they then normalise by the batch."""
    # `types` holds base classes, too, so this finds batch norms of every kind.
    norms = {param.name for param in plan.inventory if "_BatchNorm" in param.types}
    for number, (before, now) in enumerate(pairwise(plan.phases), start=1):
        thawed = (norms & before.frozen) - now.frozen
        # With `norm: train` they have normalised by the batch before, too; with
        # `trained_norm: eval` they never do.
        changes = before.modules.norm == "eval" and now.modules.trained_norm == "train"
        if thawed and changes:
            has_phases = isinstance(freeze, FreezeConfig)
            yield Lint(
                ("freeze", "phases", number) if has_phases else ("freeze", "method"),
                f"phase {now.name!r} thaws batch norms ({min(thawed)} and {len(thawed) - 1} more): "
                "from there on they normalise by each batch, so that all behind them sees other "
                "features than it was trained on",
                "modules: {trained_norm: eval} keeps them as they were; or keep them frozen: "
                + (
                    "freeze: [{type: BatchNorm2d}]" if has_phases else "keep_frozen: [{kind: norm}]"
                ),
            )
            return


def _labels(inventory: Sequence[ParamInfo]) -> list[ParamInfo]:
    """Return one inventory row per name: a tied parameter has several."""
    return [
        replace(param, name=name, aliases=())
        for param in inventory
        for name in (param.name, *param.aliases)
    ]


def _taken(node: Selector, inventory: Sequence[ParamInfo]) -> frozenset[str]:
    """Return the names that one entry takes by itself; names of a tied tensor count singly."""
    try:
        return select([node], _labels(inventory))
    # A selector that takes nothing is an error of the plan, not a note.
    except SelectorError:
        return frozenset()


def _spoken_of(node: Selector, inventory: Sequence[ParamInfo]) -> frozenset[str]:
    """Return the names that an entry takes or, with `not`, takes out."""
    return _taken(node.not_ if isinstance(node, Not) else node, inventory)


def _up_to(before: str, names: frozenset[str]) -> str:
    """Return the first of the sorted names, cut to as many dotted segments as `before` has."""
    name = min(names)
    depth = before.replace("\\.", ".").count(".")
    return ".".join(name.split(".")[: depth + 1])


def _blocks(before: str, names: frozenset[str]) -> str:
    """Return such modules of all names, each once, in numeric order, the middle ones elided."""
    found = {_up_to(before, frozenset({name})) for name in names}
    # By length first, so that block 10 comes after block 9.
    ordered = sorted(found, key=lambda name: (len(name), name))
    shown = ordered if len(ordered) <= 3 else [ordered[0], "...", ordered[-1]]
    return ", ".join(shown)


def _is_short_for(short: str, word: str) -> bool:
    """Tell whether `short` abbreviates `word`: letters in their order, as `attn` of `attention`.

    It must share the first two letters, but not be a prefix: `layer` does not mean `layernorm`.
    """
    if len(short) < 3 or word.startswith(short) or word[:2] != short[:2]:
        return False
    rest = iter(word)
    return all(letter in rest for letter in short)
