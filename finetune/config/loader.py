"""A YAML file to a `RunConfig`, every problem told at once with its line; and back to YAML."""

import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from finetune.config.base import Node, faults_of
from finetune.config.hints import places_of
from finetune.config.messages import UNKNOWN_KEY, Fault, shown, shown_path
from finetune.config.places import code_folder, find_places, keep_places, named_folder
from finetune.config.reader import MAX_DEPTH, UNUSABLE, read_file, read_text, resolve
from finetune.config.run import Provenance, RunConfig
from finetune.config.secrets import (
    Environment,
    escaped,
    masked,
    masks,
    public_secrets,
    remembered,
    with_references,
)
from finetune.config.written import Written, locate_fault, merge, put
from finetune.errors import ConfigError, FinetuneError, Origin, Problem
from finetune.redaction import causes_withheld
from finetune.trust import Trust, check_trust

MAX_FILES = 64
"""How many files one config may be made of."""

_FIRST = ("name", "type")
_OLD_NAMES = {"prefix": "cache"}
"""Keys of older versions, with their present names: configs of old runs have them."""


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    trust: Collection[str] = (),
    *,
    is_run: bool = False,
) -> RunConfig:
    """Read a config, with the files it extends below it and `overrides` on top.

    `${env:NAME}` in a text becomes that variable of the environment.

    Args:
        path: A YAML file.
        overrides: `key=value` each, as in `train.epochs=3` or `model.layers.1.out_features=10`.
            The value is read as YAML.
        trust: Packages that the config may import code from. Those that are not installed are
            looked for in the config's folder.
        is_run: Whether a run has saved the config: no code is looked for in a run's folder.

    Raises:
        ConfigError: something is wrong with it. Every problem found is listed as
            `file:line: key: what is wrong`, or as `-o key: what is wrong`.
        TrustError: a name in `trust` is no package that can be trusted.
        FinetuneError: there is no such file, or it cannot be read.
    """
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
    """Read the config that a run has saved, only to look at it.

    What is masked stays so, and variables that are not set stay as their words.

    Raises:
        ConfigError: something is wrong with it.
        FinetuneError: there is no such file, or it cannot be read.
    """
    sources = _Sources(Environment(lenient=True))
    with causes_withheld():
        return _finished(path, sources.read(path), sources, Trust())


def dump_config(config: RunConfig, into: Path | None = None) -> str:
    """Return the config as YAML that loads again to an equal one: complete, secrets masked.

    What stands under a key that names a secret (`hf_token`, `password`), in `args` or in a node,
    becomes `***`; what came from the environment is written as `${env:NAME}` again.

    Args:
        config: The config.
        into: The folder that it will lie in. Its paths will lead to the same files from there.
    """
    plain = as_plain(config)
    named = named_folder(config.written or Written(None))
    folder = named or (config.path.parent if config.path is not None and into is not None else None)
    if folder is not None:
        keep_places(plain, config.places, folder)
        if into is None or os.path.realpath(folder) != os.path.realpath(into):
            name = {"name": plain["name"]} if "name" in plain else {}
            plain = name | {"folder": escaped(str(folder.resolve()))} | plain
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def as_plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars, secrets masked: what `dump_config` writes."""
    written = config.written or Written(None)
    plain: dict[str, Any] = with_references(_plain(config), written, type(config))
    return plain


@dataclass(slots=True)
class _Sources:
    """Reads all that makes up one config, and collects what is wrong with it.

    Args:
        environment: Fills in `${env:NAME}`.
        read_already: Files by path. None marks one whose bases are being read.
        notes: What the person who wrote it should know.
    """

    environment: Environment = field(default_factory=Environment)
    read_already: dict[Path, Written | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong so far."""
        return self.environment.problems

    def read(self, path: Path) -> Written:
        """Return the document at `path`, laid over those it extends."""
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
        self.read_already[_real(path)] = None
        top = self._with_new_names(root)
        for base in reversed(self._bases(root, path)):
            top = merge(base, top)
        self.read_already[_real(path)] = top
        return top

    def _with_new_names(self, root: Written) -> Written:
        """Return a document without `extends`, its keys under their present names."""
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
        return Written(own, root.file, root.line)

    def override(self, root: Written, override: str) -> Written:
        """Return `root` with one `key=value` put in."""
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if (new := _OLD_NAMES.get(key[0])) is not None:
            self.notes.append(f"-o {name.strip()}: {key[0]!r} is called {new!r} now")
            key = (new, *key[1:])
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
        changed = put(root, key, self.environment.filled_in(document.root, key))
        if isinstance(changed, Problem):
            self.problems.append(changed)
            return root
        return changed

    def _bases(self, root: Written, path: Path) -> list[Written]:
        """Return what the document extends, the first at the bottom."""
        extends = root.entry("extends")
        if extends is None:
            return []
        names = extends.value if isinstance(extends.value, list) else [extends]
        return [self._base(name, path) for name in names]

    def _base(self, name: Written, path: Path) -> Written:
        origin = name.origin(("extends",))
        if not isinstance(name.value, str):
            self._stop(origin, f"needs the name of a file, got {_noun(name)}")
        base = path.parent / name.value
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
            raise
        except FinetuneError as error:
            self._stop(origin, f"{shown_path(base)}: {error.message}")

    def _stop(self, origin: Origin, message: str) -> NoReturn:
        """Raise all problems so far and one more: without a base, too much would be missing."""
        raise ConfigError([*self.problems, Problem(origin, message)])


def _finished(
    path: Path, root: Written, sources: _Sources, trust: Trust, notes: Sequence[str] = ()
) -> RunConfig:
    """Return the config that was read, named and knowing where it comes from."""
    root, places = find_places(root, RunConfig)
    config = _validated(root, sources.problems)
    name = config.name or re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "run"
    # the folder has done its work: where paths begin is no part of what they lead to
    values = {"name": name, "folder": None}
    found = Provenance(path, root, trust, places, tuple(notes))
    return config.with_provenance(found, values)


def _is_pipe_or_device(path: Path) -> bool:
    """Tell whether reading might never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _real(path: Path) -> Path:
    """Return the file behind symbolic links, without an error where they go round in circles."""
    return Path(os.path.realpath(path))


def _validated(root: Written, problems: Iterable[Problem]) -> RunConfig:
    """Return the config that `root` holds, or raise all that is wrong with it."""
    known = [*problems, *remembered(root), *public_secrets(root, RunConfig)]
    config = None
    try:
        config = RunConfig.model_validate(root.plain(), strict=True)
    except ValidationError as error:
        told = {problem.origin.key for problem in known}
        for fault in faults_of(error, RunConfig):
            origin = locate_fault(root, fault.key, absent=fault.absent)
            if origin.key not in told:
                known.append(Problem(origin, fault.message, _hint(fault, origin)))
    if config is None or known:
        raise ConfigError(sorted(known, key=_place))
    return config


def _hint(fault: Fault, origin: Origin) -> str | None:
    """Return the hint of a fault; for a key that is unknown in its place, where it belongs."""
    is_strange = fault.message == UNKNOWN_KEY or " has no argument " in fault.message
    if not is_strange or "did you mean" in (fault.hint or ""):
        return fault.hint
    *above, name = origin.key.split(".")
    places = places_of(name, RunConfig, tuple(above))
    return f"it belongs to {' or '.join(map(repr, places))}" if places else fault.hint


def _place(problem: Problem) -> tuple[bool, str, int]:
    """Sort by file and line, overrides last."""
    origin = problem.origin
    return origin.file is None, str(origin.file), origin.line or 0


def _noun(written: Written) -> str:
    if isinstance(written.value, dict):
        return "a mapping"
    return "a list" if isinstance(written.value, list) else shown(written.value)


def _plain(value: Any) -> Any:
    """Return a config value as dicts, lists and scalars, without what is None by default."""
    if isinstance(value, Node):
        fields = sorted(type(value).model_fields.items(), key=lambda one: one[0] not in _FIRST)
        written = {
            info.alias or name: _plain_field(name, getattr(value, name))
            for name, info in fields
            if getattr(value, name) is not None or info.default is not None
        }
        return written | {
            name: _plain_field(name, item) for name, item in (value.model_extra or {}).items()
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _plain_field(name: str, value: Any) -> Any:
    """Mask the secrets of a field. Below `args` all keys are names of arguments, and may be such."""
    plain = _plain(value)
    return masked(plain, name) if name == "args" or not isinstance(plain, dict | list) else plain


class _Dumper(yaml.SafeDumper):
    """Writes YAML that the rules of 1.2 and of 1.1 read alike."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out, instead of as aliases."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    is_plain = isinstance(resolve(value), str) and value.isprintable()
    style = None if is_plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
