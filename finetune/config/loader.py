"""Load a YAML file as a `RunConfig`, reporting all problems with their lines."""

import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from finetune.config.base import faults_of
from finetune.config.hints import places_of, remark_on
from finetune.config.merging import Replaced, merge, put
from finetune.config.messages import UNKNOWN_KEY, Fault, shown, shown_path
from finetune.config.numbers_written import numbers_as_written
from finetune.config.other_words import REMARKS_AT
from finetune.config.places import code_folder, empty_places, find_places
from finetune.config.reader import MAX_DEPTH, UNUSABLE, read_file, read_text
from finetune.config.run import Provenance, RunConfig
from finetune.config.secrets import (
    Environment,
    masks,
    public_secrets,
    references,
    remembered,
)
from finetune.config.written import Written, dotted, locate_fault
from finetune.errors import ConfigError, FinetuneError, Origin, Problem, named
from finetune.redaction import causes_withheld
from finetune.trust import Trust, check_trust

# Each may hold 1 MiB, and every override is laid over all of them.
MAX_FILES = 64
"""Most files that one config may be made of."""

_OLD_NAMES = {"prefix": "cache"}
"""Old names of keys, with the present ones: configs of earlier runs have them."""
_GONE: dict[tuple[str, str], str] = {
    ("cache", "memory_gb"): "rows are read through a memory map, which needs no budget"
}
"""Keys that have no effect any more, with the reason: configs of earlier runs have them."""


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    trust: Collection[str] = (),
    *,
    is_run: bool = False,
) -> RunConfig:
    """Return the config in a file, laid over the files that it extends, with `overrides` applied.

    `${env:NAME}` in a text is replaced by that environment variable.

    Args:
        path: A YAML file.
        overrides: `key=value` each, such as `train.epochs=3` or `model.layers.1.out_features=10`.
            The value is read as YAML.
        trust: Packages that the config may import code from. Those that are not installed are
            searched in the config's folder.
        is_run: Whether a run saved the config; then its folder is not searched for code.

    Raises:
        ConfigError: something is wrong with it. It lists each problem as
            `file:line: key: what is wrong`, or as `-o key: what is wrong`.
        TrustError: a name in `trust` is not a package that can be trusted.
        FinetuneError: the file does not exist or cannot be read.
    """
    # Once before the file is read, for a wrong name; once after, when its folder for code is known.
    check_trust(trust)
    sources = _Sources()
    with causes_withheld():
        root = sources.read(Path(path))
        for override in overrides:
            root = sources.override(root, override)
        sources.problems.extend(masks(root))
        trusted = check_trust(trust, code_folder(Path(path), root, is_run=is_run))
        return _finished(Path(path), root, sources, trusted, notes=() if is_run else sources.notes)


def load_saved(path: Path) -> RunConfig:
    """Return the config that a run saved, for looking at it only.

    Masked secrets stay masked, and variables that are not set stay as their references.

    Raises:
        ConfigError: something is wrong with it.
        FinetuneError: the file does not exist or cannot be read.
    """
    sources = _Sources(Environment(lenient=True))
    with causes_withheld():
        return _finished(path, sources.read(path), sources, Trust())


@dataclass(slots=True)
class _Sources:
    """Reads all files and overrides of one config, and collects what is wrong with them.

    Args:
        environment: Replaces `${env:NAME}`.
        read_already: Contents of files by path; None for a file whose bases are being read.
        notes: Lines to report to the user, such as on old names of keys.
        replaced: Mappings of a base that others of another kind have replaced.
    """

    environment: Environment = field(default_factory=Environment)
    read_already: dict[Path, Written | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """Problems found so far."""
        return self.environment.problems

    def read(self, path: Path) -> Written:
        """Return the document at `path`, laid over the ones it extends."""
        document = read_file(path)
        self.problems.extend(document.problems)
        root = document.root
        if root.value is None:
            raise ConfigError([Problem(Origin(path, 1, ""), "is empty")])
        if not isinstance(root.value, dict):
            message = f"needs a mapping, got {_noun(root)}"
            raise ConfigError([*self.problems, Problem(root.origin(()), message)])
        root = self.environment.filled_in(root)
        assert isinstance(root.value, dict)
        # None marks it as being read: a base that extends this file in turn finds the mark, not an
        # endless loop.
        self.read_already[_real(path)] = None
        top = self._with_new_names(root)
        for base in reversed(self._bases(root, path)):
            top = merge(base, top, self.replaced)
        self.read_already[_real(path)] = top
        return top

    def _with_new_names(self, root: Written) -> Written:
        """Return a document without its key `extends`, and with old keys renamed."""
        assert isinstance(root.value, dict)
        own: dict[str, Written] = {}
        for key, item in root.value.items():
            new = _OLD_NAMES.get(key)
            if new is None:
                own[key] = item
            elif new in root.value:
                message = f"{key!r} is the old name of {new!r}, and both are given"
                self.problems.append(Problem(item.origin((key,)), message))
            else:
                self.notes.append(f"{item.origin((key,))} is called {new!r} now")
                own[new] = item
        own.pop("extends", None)
        for place, reason in _GONE.items():
            section, name = place
            if section in own and (found := own[section].entry(name)) is not None:
                self.notes.append(f"{found.origin(place)} has no effect, remove it: {reason}")
                own[section] = own[section].without(name)
        return Written(own, root.file, root.line)

    def override(self, root: Written, override: str) -> Written:
        """Return `root` with one `key=value` applied; on a fault, `root` itself."""
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if (new := _OLD_NAMES.get(key[0])) is not None:
            self.notes.append(f"-o {name.strip()}: {key[0]!r} is called {new!r} now")
            key = (new, *key[1:])
        if (reason := _GONE.get((key[0], ".".join(key[1:])))) is not None:
            self.notes.append(f"-o {name.strip()} has no effect, remove it: {reason}")
            return root
        if not equals or not all(key) or len(key) > MAX_DEPTH:
            message = f"needs the form 'key=value', got {shown(override)}"
            self.problems.append(Problem(Origin(None, None, shown(name).strip("'")), message))
            return root
        try:
            document = read_text(text, None, key)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return root
        self.problems.extend(document.problems)
        given_up: list[Origin] = []
        changed = put(root, key, self.environment.filled_in(document.root, key), given_up)
        if isinstance(changed, Problem):
            self.problems.append(changed)
            return root
        self.notes += [f"-o {name.strip()} takes the place of {origin}" for origin in given_up]
        return changed

    def _bases(self, root: Written, path: Path) -> list[Written]:
        """Return the documents that this one extends; later ones override earlier ones."""
        extends = root.entry("extends")
        if extends is None:
            return []
        names = extends.value if isinstance(extends.value, list) else [extends]
        return [self._base(name, path) for name in names]

    def _base(self, name: Written, path: Path) -> Written:
        """Return one document that the file at `path` extends; stop on a fault."""
        origin = name.origin(("extends",))
        if not isinstance(name.value, str):
            self._stop(origin, f"needs the name of a file, got {_noun(name)}")
        base = path.parent / name.value
        # Before it is opened: to read a pipe would wait for ever.
        if UNUSABLE.search(name.value) or _is_pipe_or_device(base):
            self._stop(origin, f"{shown_path(base)} is no file")
        if (home := _real(base)) in self.read_already:
            found = self.read_already[home]
            if found is None:
                self._stop(origin, f"{shown(name.value)} extends this file in turn")
            return found
        if len(self.read_already) == MAX_FILES:
            self._stop(origin, f"extends more than {MAX_FILES} files")
        try:
            return self.read(base)
        except ConfigError:
            # It names its own file and line already.
            raise
        except FinetuneError as error:
            self._stop(origin, f"{shown_path(base)}: {error.message}")

    def _stop(self, origin: Origin, message: str) -> NoReturn:
        """Raise all problems found so far and one more: without a base, others would be misleading."""
        raise ConfigError([*self.problems, Problem(origin, message)])


def _finished(
    path: Path, root: Written, sources: _Sources, trust: Trust, notes: Sequence[str] = ()
) -> RunConfig:
    """Return the validated config with its name, places and origin."""
    root, places = find_places(numbers_as_written(root, RunConfig), RunConfig)
    problems = [*sources.problems, *empty_places(root, RunConfig)]
    config = _validated(root, problems, sources.replaced)
    name = config.name or re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "run"
    # `folder` has been applied to all paths, and is no part of the config's value any more
    values = {"name": name, "folder": None}
    found = Provenance(path, root, trust, places, (*notes, *map(_on_replaced, sources.replaced)))
    return config.with_provenance(found, values)


def _on_replaced(one: Replaced) -> str:
    """Return the note on a mapping that one of another kind has replaced."""
    is_are = "is" if len(one.lost) == 1 else "are"
    return (
        f"{one.above} is of another kind than {one.below}, which it replaces whole: "
        f"{named(one.lost)} {is_are} not taken over"
    )


def _is_pipe_or_device(path: Path) -> bool:
    """Tell whether a path is neither a file nor a folder, so that reading it might never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _real(path: Path) -> Path:
    """Return a path with symbolic links resolved; a cycle of links raises nothing."""
    return Path(os.path.realpath(path))


def _validated(
    root: Written, problems: Iterable[Problem], replaced: Sequence[Replaced]
) -> RunConfig:
    """Return the config that `root` holds, or raise all problems at once.

    Args:
        root: The config as written.
        problems: What is wrong with it already.
        replaced: Mappings of a base that others of another kind have replaced.
    """
    lost = {origin.key: origin for one in replaced for origin in one.lost.values()}
    known = [*problems, *remembered(root), *public_secrets(root, RunConfig)]
    config = None
    try:
        # `strict`: else pydantic would take "3" for 3 and 1 for true, and a mistake would pass
        # unseen.
        config = RunConfig.model_validate(root.plain(), strict=True)
    except ValidationError as error:
        told = {problem.origin.key for problem in known}
        for fault in faults_of(error, RunConfig):
            origin = locate_fault(root, fault.key, absent=fault.absent)
            # The first fault of a place is the cause; pydantic's on the same key only follows from
            # it.
            if origin.key not in told:
                hint = _hint(fault, origin, root, told)
                if fault.absent and origin.key in lost:
                    hint = f"{lost[origin.key]} is of another kind, which is replaced whole"
                known.append(Problem(origin, fault.message, hint))
    if config is None or known:
        raise ConfigError(sorted(known, key=_place))
    return config


def _hint(fault: Fault, origin: Origin, root: Written, told: Collection[str]) -> str | None:
    """Return the hint of a fault; for an unknown key that belongs elsewhere, where.

    Args:
        fault: The fault.
        origin: Its place.
        root: The config as written.
        told: Keys that something is wrong with already, such as those written twice.
    """
    is_strange = fault.message == UNKNOWN_KEY or " has no argument " in fault.message
    # A hint about this very key says more than a place where there is one of its name.
    about = fault.hint or ""
    *above, name = origin.key.split(".")
    if name == "architecture" and fault.absent and ".".join([*above, "name"]) in told:
        return "write 'architecture' for the second 'name'; 'name' is what the layer is called"
    if is_strange and (remark := REMARKS_AT.get(origin.key)) is not None:
        return remark
    if " number, got " in fault.message and _is_from_variable(root, origin.key):
        return f"a variable is text: -o {origin.key}=... gives a number"
    is_sure = "did you mean" in about or about.startswith("leave it out")
    if not is_strange or is_sure or about == remark_on(name):
        return fault.hint
    places = places_of(name, RunConfig, tuple(above))
    if places == ["data.inputs"] and isinstance(column := _value_at(root, origin.key), str):
        return f"the columns that the network takes are named by data.inputs: [{shown(column)}]"
    return f"it belongs to {' or '.join(map(repr, places))}" if places else fault.hint


def _is_from_variable(root: Written, key: str) -> bool:
    """Tell whether the text at a key contained environment variables."""
    return any(dotted(place) == key for place, *_ in references(root))


def _value_at(root: Written, key: str) -> Any:
    """Return the plain value at a key below mappings; None if there is none."""
    value = root.plain()
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _place(problem: Problem) -> tuple[bool, str, int]:
    """Return a sort key: by file and line, overrides last."""
    origin = problem.origin
    return origin.file is None, str(origin.file), origin.line or 0


def _noun(written: Written) -> str:
    """Return what kind of value was written, for a message."""
    if isinstance(written.value, dict):
        return "a mapping"
    return "a list" if isinstance(written.value, list) else shown(written.value)
