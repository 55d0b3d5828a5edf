"""A YAML file to a `RunConfig`, every problem told at once with its line; and back to YAML."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from finetune.config.base import Node, faults_of
from finetune.config.messages import shown
from finetune.config.reader import MAX_DEPTH, read_file, read_text, resolve
from finetune.config.run import Provenance, RunConfig
from finetune.config.written import Written, locate_fault, merge, put
from finetune.errors import ConfigError, FinetuneError, Origin, Problem

MAX_FILES = 64
"""How many files one config may be made of."""
MASK = "***"
"""What a saved config holds in place of a secret."""

_FIRST = ("name", "type")
_SECRET = re.compile(
    r"(^|[_-])(token|password|passwd|secret|api_?key|access_?key|private_?key)($|[_-])", re.I
)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), trust: Collection[str] = ()
) -> RunConfig:
    """Read a config, with the files it extends below it and `overrides` on top.

    Args:
        path: A YAML file.
        overrides: `key=value` each, as in `train.epochs=3` or `model.layers.1.out_features=10`.
            The value is read as YAML.
        trust: Packages that the config may import code from.

    Raises:
        ConfigError: something is wrong with it. Every problem found is listed as
            `file:line: key: what is wrong`, or as `-o key: what is wrong`.
        FinetuneError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    sources = _Sources()
    root = sources.read(path)
    for override in overrides:
        root = sources.override(root, override)
    config = _validated(root, sources.problems)
    name = config.name or re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "run"
    return config.with_provenance(Provenance(path, root, frozenset(trust)), {"name": name})


def dump_config(config: RunConfig) -> str:
    """Return the config as YAML that loads again to an equal one: complete, secrets masked.

    A text below `args` whose key names a secret (`hf_token`, `password`) becomes `***`.
    """
    plain = as_plain(config)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def as_plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars, secrets masked: what `dump_config` writes."""
    plain: dict[str, Any] = _plain(config)
    return plain


@dataclass(slots=True)
class _Sources:
    """Reads all that makes up one config, and collects what is wrong with it.

    Args:
        problems: What is wrong so far.
        read_already: Files by path. None marks one whose bases are being read.
    """

    problems: list[Problem] = field(default_factory=list)
    read_already: dict[Path, Written | None] = field(default_factory=dict)

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
        self.read_already[_real(path)] = None
        own = {key: item for key, item in root.value.items() if key != "extends"}
        top = Written(own, root.file, root.line)
        for base in reversed(self._bases(root, path)):
            top = merge(base, top)
        self.read_already[_real(path)] = top
        return top

    def override(self, root: Written, override: str) -> Written:
        """Return `root` with one `key=value` put in."""
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
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
        changed = put(root, key, document.root)
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
        if (home := _real(base)) in self.read_already:
            found = self.read_already[home]
            if found is None:
                self._stop(origin, f"{name.value!r} extends this file in turn")
            return found
        if len(self.read_already) == MAX_FILES:
            self._stop(origin, f"extends more than {MAX_FILES} files")
        try:
            return self.read(base)
        except ConfigError:
            raise
        except FinetuneError as error:
            self._stop(origin, f"{str(base)!r}: {error.message}")

    def _stop(self, origin: Origin, message: str) -> NoReturn:
        """Raise all problems so far and one more: without a base, too much would be missing."""
        raise ConfigError([*self.problems, Problem(origin, message)])


def _real(path: Path) -> Path:
    """Return the file behind symbolic links, without an error where they go round in circles."""
    return Path(os.path.realpath(path))


def _validated(root: Written, problems: Iterable[Problem]) -> RunConfig:
    """Return the config that `root` holds, or raise all that is wrong with it."""
    known = list(problems)
    config = None
    try:
        config = RunConfig.model_validate(root.plain(), strict=True)
    except ValidationError as error:
        told = {problem.origin.key for problem in known}
        for fault in faults_of(error, RunConfig):
            origin = locate_fault(root, fault.key, absent=fault.absent)
            if origin.key not in told:
                known.append(Problem(origin, fault.message, fault.hint))
    if config is None or known:
        raise ConfigError(sorted(known, key=_place))
    return config


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
        return written | {name: _plain(item) for name, item in (value.model_extra or {}).items()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _plain_field(name: str, value: Any) -> Any:
    return _masked(_plain(value)) if name == "args" else _plain(value)


def _masked(value: Any) -> Any:
    """Replace texts whose key names a secret, at any depth."""
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: MASK if isinstance(item, str) and _SECRET.search(key) else _masked(item)
        for key, item in value.items()
    }


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
