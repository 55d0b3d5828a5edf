"""Put a config together from a look at the data: the proposal that `finetune init` writes."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data.table import Listed
from finetune.errors import DataError
from finetune.starting.chosen_columns import Columns, choose_columns_to_learn
from finetune.starting.chosen_network import choose_network, metrics_of
from finetune.starting.chosen_sizes import Lengths, chosen_sizes
from finetune.starting.found_data import FoundData
from finetune.starting.judged_columns import Judged, judged
from finetune.starting.network_parts import ChosenNetwork
from finetune.starting.wishes import Choice, Wishes

_PATHS = ("path", "folder")
_FEW_ROWS = 2000
"""Samples up to which the loss chooses the weights, and no share of right answers."""
_MASKS = 20
"""Masks that are looked at."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A config, and what was decided on the way.

    Args:
        config: The config as plain data.
        choices: What was decided, with reasons.
        comments: A comment for some top keys.
        trust: Packages that the commands must trust.
        new_input: What `predict` may be given to try.
    """

    config: dict[str, Any]
    choices: tuple[Choice, ...]
    comments: Mapping[str, str]
    trust: tuple[str, ...]
    new_input: str


def proposed(
    path: Path, found: FoundData, by_name: Mapping[str, Judged], wishes: Wishes, out: Path
) -> Proposal:
    """Return a config for data.

    Args:
        path: What the user named.
        found: The data.
        by_name: What its columns are.
        wishes: What the user has said.
        out: Where the config will be; its paths are relative to that.

    Raises:
        FinetuneError: the data does not suffice, or no network for it is at hand.
    """
    columns = choose_columns_to_learn(found, by_name, wishes)
    target = by_name[columns.target[0]]
    # Before a network is chosen, for which the hub may be asked.
    _refuse_gaps(target, found.num_rows)
    network = choose_network(found, columns, wishes)
    lengths = chosen_sizes(
        found.num_rows, network.pace, wishes,
        classes=target if columns.task == "classification" else None,
        has_parts=len(found.sources) > 1, has_copies=_has_copies(found, columns),
    )  # fmt: skip
    data = Choice("data", f"{path}: {found.num_rows:,} samples", "; ".join(found.told))
    choices = (data, *columns.choices, *network.choices, lengths.choice)
    return Proposal(
        _config(found, columns, network, lengths, out),
        tuple(_joined(choices)),
        _comments(columns, network),
        network.trust,
        _new_input(found, columns),
    )


def columns_judged(found: FoundData) -> dict[str, Judged]:
    """Return what each column of the data is."""
    is_table = found.kind not in ("texts", "images", "recordings")
    return judged(found.columns, found.folder, is_table=is_table)


def _refuse_gaps(target: Judged, num_rows: int) -> None:
    """Raise `DataError` if rows have no target."""
    if target.gaps:
        raise DataError(
            f"has no {target.name} in {target.gaps:,} of {num_rows:,} rows",
            hint="take these rows out, or --target NAME takes another column",
        )


def _has_copies(found: FoundData, columns: Columns) -> bool:
    """Tell whether texts occur twice; rows of numbers often do, and are other samples."""
    texts = [found.columns[one.name] for one in columns.inputs_of("text")]
    cells = [one.values for one in texts if isinstance(one, Listed)]
    return bool(cells) and len(set(zip(*cells, strict=True))) < found.num_rows


def _joined(choices: Iterable[Choice]) -> list[Choice]:
    """Return choices with those of one reason about the same thing in one line."""
    joined: dict[tuple[str, str], Choice] = {}
    for choice in choices:
        key = (
            (choice.about, choice.why)
            if choice.about == "left out"
            else (choice.about, str(choice))
        )
        before = joined.get(key)
        joined[key] = (
            choice if before is None else replace(choice, what=f"{before.what}, {choice.what}")
        )
    return [*joined.values()]


def _config(
    found: FoundData, columns: Columns, network: ChosenNetwork, lengths: Lengths, out: Path
) -> dict[str, Any]:
    """Return the config as plain data, in the order in which it is written."""
    marks = sorted({m for name in (*columns.inputs, *columns.target)
                    for m in columns.by_name[name].marks})  # fmt: skip
    data: dict[str, Any] = {}
    for name, keys in found.sources.items():
        more = dict(network.source) | ({"missing": marks} if marks else {})
        data[name] = _relative(keys, out) | more | _typed(keys, found, network)
    if columns.named:
        data["inputs"] = [*columns.inputs]
        target = columns.target
        data["target"] = target[0] if len(target) == 1 else [*target]
    if lengths.split is not None:
        data["split"] = lengths.split
    if network.transforms is not None:
        data["transforms"] = network.transforms
    task = {"type": columns.task, **columns.task_keys, "metrics": metrics_of(columns)}
    if columns.task == "segmentation" and _is_black_and_white(found, columns.target[0]):
        # 255 is the usual mark of pixels that do not count; here it is a class.
        task["ignore_index"] = None
    # In the order in which people read a config, which `config_text` keeps.
    config: dict[str, Any] = {"seed": 0, "model": {"layers": network.layers}, "data": data}
    config |= {"task": task}
    if network.freeze is not None:
        config["freeze"] = network.freeze
    config["optimizer"] = {"type": "AdamW", "lr": network.lr, "weight_decay": 0.01}
    config["schedule"] = {"type": "cosine", "warmup": 0.1}
    config["train"] = {"epochs": lengths.epochs, "batch_size": lengths.batch_size}
    is_watched = lengths.split is not None or "validation" in found.sources
    is_share = columns.task not in ("regression", "similarity")
    if is_watched and is_share and found.num_rows < _FEW_ROWS:
        # Of few samples many epochs get equally many right, and the first of them would be used.
        config["train"]["checkpoint"] = {"best": "validation/loss"}
    return config


def _typed(keys: Mapping[str, Any], found: FoundData, network: ChosenNetwork) -> dict[str, Any]:
    """Return the columns of arrays of which some are read as another number type."""
    if not network.dtypes:
        return {}
    columns = keys.get("columns") or {name: {"array": name} for name in found.columns}
    types = {name: {"dtype": dtype} for name, dtype in network.dtypes.items()}
    return {"columns": {name: one | types.get(name, {}) for name, one in columns.items()}}


def _relative(keys: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return the keys of a source with paths as the config's folder has them."""
    result = dict(keys)
    base = out.absolute().parent
    for name in _PATHS:
        if name in result:
            _refuse_unwritable(result[name])
            place = Path(result[name]).absolute()
            # A folder elsewhere is named in full: a path of many `..` breaks when either moves.
            inside = place.is_relative_to(base)
            result[name] = os.path.relpath(place, base) if inside else str(place)
    return result


def _refuse_unwritable(path: str) -> None:
    """Raise `DataError` if the name of a path holds bytes that are no UTF-8: YAML has none."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path!r} is no name in UTF-8, which a config cannot hold",
            hint="rename it, or put what it holds into a folder with a plain name",
        ) from error


def _is_black_and_white(found: FoundData, mask: str) -> bool:
    """Tell whether the first masks hold 0 and 255 alone, which are then two classes."""
    column = found.columns[mask]
    if not isinstance(column, Listed) or found.folder is None:
        return False
    from PIL import Image  # an optional package

    numbers = set()
    for name in column.values[:_MASKS]:
        with Image.open(found.folder / str(name)) as image:
            numbers |= {number for _, number in image.convert("L").getcolors(256) or ()}
    return numbers == {0, 255}


def _comments(columns: Columns, network: ChosenNetwork) -> dict[str, str]:
    """Return a comment for each top key that a person is likely to change."""
    first = columns.task
    comments = {
        "seed": "the same seed gives the same run, bit by bit",
        "model": "each layer takes the output of the one before it",
        "data": "which samples, how they are parted, and what is done to each",
        "task": f"what is learnt ({first}); metrics of every evaluation",
        "optimizer": "how parameters are updated",
        "schedule": "the rate rises over the first tenth of the run, then falls",
        "train": "how long; the weights of the best epoch on the validation samples are used",
    }
    if network.freeze is not None:
        comments["freeze"] = "what stays as it is; the run proves that it did"
    return comments


def _new_input(found: FoundData, columns: Columns) -> str:
    """Return what a person may give to `predict`."""
    if found.kind == "texts":
        return "new.txt"
    if found.kind == "images" or any(columns.by_name[n].role == "image" for n in columns.inputs):
        return "new.jpg"
    if found.kind == "recordings":
        return "new.wav"
    return "new.npz" if found.kind == "arrays" else "new.csv"
