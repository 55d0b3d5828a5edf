"""Choose target, task and inputs from what the columns are, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.data.readers.chunks import shown_names
from finetune.data.table import Column, Listed, Numbers
from finetune.errors import DataError, did_you_mean, named
from finetune.starting.chosen_task import is_score_of_a_pair, similarity_task, task_for
from finetune.starting.found_data import FoundData
from finetune.starting.judged_columns import MOST_CLASSES, Judged
from finetune.starting.wishes import TARGET_NAMES, Choice, Wishes, is_named_target, last_word, plain

_TOLD = frozenset({"object", "marked", "image", "recording"})
"""Kinds of columns whose reason is told where no column is left to learn from."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What is learnt from what.

    Args:
        task: Type of the task.
        target: Columns that are learnt.
        inputs: Columns that the network takes.
        named: Whether the config must name them; false for the usual names of a folder.
        task_keys: Further keys of the task.
        by_name: What each column is.
        choices: The choices made, for the user.
    """

    task: str
    target: tuple[str, ...]
    inputs: tuple[str, ...]
    by_name: Mapping[str, Judged]
    choices: tuple[Choice, ...]
    named: bool = True
    task_keys: Mapping[str, Any] = field(default_factory=dict)

    def inputs_of(self, *roles: str) -> list[Judged]:
        """Return the input columns that have one of the given roles."""
        return [self.by_name[name] for name in self.inputs if self.by_name[name].role in roles]


def choose_columns_to_learn(
    found: FoundData, by_name: Mapping[str, Judged], wishes: Wishes
) -> Columns:
    """Return target, task and inputs.

    Raises:
        DataError: there is nothing to learn, or a name that the user gave is no column.
    """
    wishes = replace(
        wishes,
        target=_named(wishes.target, by_name),
        inputs=_named(wishes.inputs, by_name),
    )
    _refuse_unknown([*wishes.target, *wishes.inputs], by_name)
    _refuse_few(found.num_rows)
    if both := [name for name in wishes.inputs if name in wishes.target]:
        raise DataError(
            f"{named(both)} is both an input and what is learnt",
            hint="--inputs names columns that are known before the target is",
        )
    _refuse_unproposed(found, wishes)
    target, on_target = _target(by_name, wishes)
    first = by_name[target[0]]
    task, keys, on_task = task_for(found, [by_name[name] for name in target], by_name, wishes)
    inputs, on_inputs = _inputs(by_name, target, task, wishes, found)
    _refuse_unfit(task, first, found.num_rows)
    # Only now: whether there are two texts to compare is known with the inputs.
    if task == "classification" and is_score_of_a_pair(by_name, inputs, first, wishes):
        task, keys, on_task = similarity_task(first)
    choices = (on_target, *on_inputs, on_task)
    # Columns of a folder have the names that a config takes where it names none.
    is_folder = found.kind in ("texts", "images", "recordings")
    return Columns(task, target, inputs, by_name, choices, named=not is_folder, task_keys=keys)


def _named(given: Sequence[str], by_name: Mapping[str, Judged]) -> tuple[str, ...]:
    """Return the columns that a user named, each alone or several with commas between them."""
    return tuple(
        name
        for one in given
        # A name may hold a comma itself.
        for name in ([one] if one in by_name else [part.strip() for part in one.split(",")])
    )


def _refuse_unknown(names: Sequence[str], by_name: Mapping[str, Judged]) -> None:
    """Raise `DataError` if a name is no column."""
    for name in names:
        if name not in by_name:
            raise DataError(
                f"no column {name!r}; there are: {shown_names(by_name)}",
                hint=did_you_mean(name, by_name),
            )


def _refuse_unproposed(found: FoundData, wishes: Wishes) -> None:
    """Raise `DataError` if the data is for a task that has a template alone."""
    for name, column in found.columns.items():
        template = _template_for(column)
        if template is not None and (name in wishes.target or not wishes.target):
            what = "boxes" if template == "detection" else "answers in texts"
            raise DataError(
                f"column {name!r} holds {what}, for which no config is proposed",
                hint=f"finetune init --template {template} writes one to fill in; --target NAME "
                "learns another column",
            )


def _template_for(column: Column) -> str | None:
    """Return the template for a column of boxes or of answers; None for any other column."""
    cells = column.values if isinstance(column, Listed) else ()
    first = next((c for c in cells if isinstance(c, list | tuple | Mapping) and c), None)
    entry = first[0] if isinstance(first, list | tuple) else first
    if not isinstance(entry, Mapping):
        return None
    return "detection" if "bbox" in entry else "span" if "answer_start" in entry else None


def candidates(by_name: Mapping[str, Judged]) -> list[str]:
    """Return the columns that may be learnt, the likeliest first."""
    fit = [
        name
        for name, one in by_name.items()
        if one.role in ("number", "category", "list", "array", "words", "marked")
        or (one.role == "image" and plain(name) == "mask")
        # What cannot be learnt is refused later, which tells more than another target would.
        or (one.role in ("constant", "object") and plain(name) in TARGET_NAMES)
    ]
    rank = {name: place for place, name in enumerate(TARGET_NAMES)}
    exact = sorted((n for n in fit if plain(n) in rank), key=lambda n: rank[plain(n)])
    ending = [n for n in fit if n not in exact and last_word(n) in rank]
    # Of columns without such a name the last comes first: tables mostly end with their target.
    return [*exact, *ending, *(n for n in reversed(fit) if n not in exact and n not in ending)]


def _target(by_name: Mapping[str, Judged], wishes: Wishes) -> tuple[tuple[str, ...], Choice]:
    """Return the columns that are learnt."""
    if wishes.target:
        return wishes.target, Choice("target", ", ".join(wishes.target), "as you said")
    likely = [name for name in candidates(by_name) if name not in wishes.inputs]
    if not likely or (len(likely) == 1 and len(by_name) == 1):
        raise DataError(
            f"has no column to learn; there are: {_roles(by_name)}",
            hint="--target NAME says which column is learnt",
        )
    name = likely[0]
    if is_named_target(name):
        return (name,), Choice("target", name, "since targets are often called so")
    others = [one for one in by_name.values() if one.is_usable and one.name != name]
    if len(others) == 1:
        return (name,), Choice("target", name, f"the only column beside {others[0].name}")
    why = "the last column that can be learnt; --target NAME takes another one"
    return (name,), Choice("target", name, why)


def _roles(by_name: Mapping[str, Judged]) -> str:
    """Return the columns with what they are, for a message."""
    return shown_names([f"{one.name} ({one.role})" for one in by_name.values()])


_LEAST_ROWS = 10


def _refuse_few(num_rows: int) -> None:
    """Raise `DataError` if there are too few samples: what columns hold would be told wrongly."""
    if num_rows < _LEAST_ROWS:
        samples = "1 sample" if num_rows == 1 else f"{num_rows} samples"
        raise DataError(
            f"holds {samples}, too few to train, validate and test on",
            hint=f"at least {_LEAST_ROWS} are needed, and some hundred to learn anything",
        )


def _refuse_unfit(task: str, target: Judged, num_rows: int) -> None:
    """Raise `DataError` if the target has one class only, or too many values to be classes."""
    if target.role == "object":
        raise DataError(
            f"has {target.name} to learn, but {target.why}",
            hint="--target NAME takes another column",
        )
    if target.role == "marked":
        raise DataError(
            f"has {target.name} to learn, but {target.why}",
            hint="write these numbers as 1234.5, or --target NAME takes another column",
        )
    if task != "classification":
        return
    if target.distinct < 2:
        raise DataError(
            f"has a single class: {target.name} is {named(list(map(str, target.values)))} in every "
            "row",
            hint="a second class is needed to tell it from",
        )
    if target.distinct > num_rows / 2:
        raise DataError(
            f"has {target.distinct:,} different values of {target.name} in {num_rows:,} rows: too "
            "many to be classes",
            hint="--target NAME takes another column",
        )


def _inputs(
    by_name: Mapping[str, Judged],
    target: Sequence[str],
    task: str,
    wishes: Wishes,
    found: FoundData,
) -> tuple[tuple[str, ...], list[Choice]]:
    """Return the columns that the network takes, with what they are and why others are left out."""
    if wishes.inputs:
        return wishes.inputs, [Choice("inputs", ", ".join(wishes.inputs), "as you said")]
    rest = [one for one in by_name.values() if one.name not in target]
    # Not set aside: what the table holds beside its images is hardly what it is about.
    if lacking := next((one for one in rest if one.lacks), None):
        raise DataError(
            f"{lacking.name}: {lacking.lacks}",
            hint="add them, or take their rows out; --inputs NAME takes other columns",
        )
    usable = [one for one in rest if one.is_usable and one.role != "list"]
    aside = {one.name: one.why for one in rest if one.why}
    lists = [one for one in rest if one.role == "list"]
    # Its words are a list of their own, as long as that of the tags.
    if task == "token_classification":
        usable = lists[:1]
    else:
        aside |= {one.name: "lists of several lengths are no inputs" for one in lists}
    aside |= _telling_all(usable, target, found) if task == "classification" else {}
    kept = _of_one_kind([one for one in usable if one.name not in aside], aside)
    if not kept:
        reasons = [f"{one.name}: {one.why}" for one in rest if one.why and one.role in _TOLD]
        raise DataError(
            f"has no column to learn {named(list(target))} from; there are: {_roles(by_name)}",
            hint=reasons[0] if reasons else "--inputs NAME says which columns the network takes",
        )
    names = tuple(one.name for one in kept)
    shown = shown_names([f"{one.name} ({one.role})" for one in kept])
    choices = [Choice("inputs", shown)]
    choices += [Choice("left out", name, why) for name, why in aside.items()]
    return names, choices


def _of_one_kind(usable: Sequence[Judged], aside: dict[str, str]) -> list[Judged]:
    """Return the inputs that one network takes; adds the others to `aside`, with the reason."""
    for role, limit in (("image", 1), ("recording", 1), ("list", 1), ("text", 2), ("array", 1)):
        of_role = [one for one in usable if one.role == role]
        if of_role:
            kept = of_role[:limit]
            plain = f"the network takes {role}s alone; --inputs NAME says otherwise"
            aside |= {one.name: plain for one in usable if one not in kept}
            return kept
    return list(usable)


def _telling_all(
    usable: Sequence[Judged], target: Sequence[str], found: FoundData
) -> dict[str, str]:
    """Return the columns whose values match the classes one to one, with that as the reason."""
    labels = _cells(found.columns[target[0]])
    told = {}
    for one in usable:
        if one.role not in ("category", "number") or one.distinct > MOST_CLASSES:
            continue
        pairs = set(zip(_cells(found.columns[one.name]), labels, strict=True))
        # One to one in both directions: a coarser or finer column still leaves something to learn.
        if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 1:
            told[one.name] = f"it says the same as {target[0]}"
    return told


def _cells(column: Column) -> list[Any]:
    """Return the values of a column that can be compared."""
    if isinstance(column, Numbers):
        return column.values.tolist()
    assert isinstance(column, Listed)
    return [*map(str, column.values)]
