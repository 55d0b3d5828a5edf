"""Import objects by dotted path: optional packages, and user code if it is trusted."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from finetune.errors import FinetuneError, Key, TrustError
from finetune.process import collector_off
from finetune.trust import Trust, check_trust, is_dotted_name, module_of_file

_MAX_WRAPPERS = 100
"""Most decorators on one function that are looked through; more mean a cycle."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Dotted name of the module wanted.
        extra: The extra of `finetune` that installs it.

    Raises:
        FinetuneError: it is not installed. The message names the extra.
    """
    try:
        with collector_off():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _not_installed(module, extra) from error


def refuse_if_missing(module: str, *, extra: str) -> None:
    """Raise unless an optional package is installed, without importing it, which may take seconds.

    Raises:
        FinetuneError: it is not installed. The message names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise _not_installed(module, extra)


def _not_installed(module: str, extra: str) -> FinetuneError:
    """Return the error for an optional package that is not there."""
    return FinetuneError(
        f"needs the package {module.partition('.')[0]!r}, which is not installed",
        hint=f"pip install 'finetune[{extra}]'",
    )


def import_trusted(path: str, trust: Collection[str], *, key: Key) -> Callable[..., Any]:
    """Return the class or function at `package.module:name`, where the user trusts `package`.

    Nothing is imported before the package is found among `trust`. The object itself must be
    defined inside that package, beneath decorators and partials as well, so that a trusted package
    cannot hand on a stranger's function (`os.system`) under its own name. Attributes are looked up
    on classes, never on modules.

    Args:
        path: `my_pkg.nets:make_net` or `my_pkg.nets:Net.from_name`.
        trust: Names of packages trusted on the command line.
        key: The config value that asks for it.

    Raises:
        TrustError: the package is not trusted, or the object is not its own.
        FinetuneError: there is no such module or name.
    """
    module_name, _, qualname = path.partition(":")
    if not qualname or module_of_file(module_name) is not None:
        raise FinetuneError(
            f"needs the form 'package.module:name', got {path!r}",
            hint=_form_hint(module_name, qualname),
            key=(*key, "path"),
        )
    # The names are checked before any import: to import a package already runs its code.
    trusted = check_trust(trust)
    package = _trusted_package(module_name, trusted, key)
    module = _module(module_name, trusted, key)
    found: Callable[..., Any] = _attribute(module, qualname, path, key)
    if (home := _foreign_home(found, package)) is not None:
        raise TrustError(
            f"{path!r} is not a class or function of the trusted package {package!r} "
            f"(it comes from {home!r})",
            key=(*key, "path"),
        )
    return found


def call_trusted(path: str, args: Mapping[str, Any], trust: Collection[str], *, key: Key) -> Any:
    """Call the class or function at `package.module:name` with `args`, if `trust` allows it.

    Raises:
        TrustError: the package is not trusted, or the object is not its own.
        FinetuneError: there is no such module or name, or it does not take the arguments.
    """
    function = import_trusted(path, trust, key=key)
    # `ValueError`: a callable written in C may have no signature; then the call itself complains.
    with suppress(ValueError):
        signature = inspect.signature(function)
        try:
            signature.bind(**args)
        except TypeError as error:
            raise FinetuneError(
                f"{path!r}: {error}; its signature is {signature}", key=(*key, "args")
            ) from error
    return function(**args)


def code_of(trust: Collection[str]) -> str:
    """Return a hash of the source of all trusted packages; it changes when a file of them does."""
    code = repr(sorted(code_by_package(trust).items()))
    return blake2b(code.encode(), digest_size=16).hexdigest()


def code_by_package(trust: Collection[str]) -> dict[str, str]:
    """Return a hash of the source of each trusted package that is found, by its name.

    All `.py` and `.so` files of a package count, since a function may call any of them. Where the
    package lies does not.
    """
    packages = sorted({name.partition(".")[0] for name in trust})
    with _found_beside_the_config(check_trust(trust)):
        found = {package: _files_of(package) for package in packages}
    return {package: _hash_of(files) for package, files in found.items() if files}


def _hash_of(files: Mapping[str, Path]) -> str:
    """Return a hash of files under their names."""
    digest = blake2b(digest_size=16)
    for name, file in files.items():
        with suppress(OSError):
            digest.update(f"{name}\0".encode("utf-8", "surrogatepass"))
            digest.update(blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def package_path(text: str, *, key: Key) -> Path:
    """Return the path that `package:NAME/inner` means, without importing NAME; else `text` as path.

    Raises:
        FinetuneError: no such package is installed, or the inner path leaves it.
    """
    if not text.startswith("package:"):
        return Path(text).expanduser()
    name, _, inner = text.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module without a place of its own, such as `__main__`
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FinetuneError(
            f"no installed package {name!r} in {text!r}", hint=f"pip install {name}", key=key
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    # Resolved before the check: `..` and links in the inner path would lead out of the package.
    path = (root / inner).resolve()
    if not path.is_relative_to(root):
        raise FinetuneError(f"leaves the package: {text!r}", key=key)
    return path


def _files_of(package: str) -> dict[str, Path]:
    """Return the source files of a package by their path in it; none if it is not found."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return {}
    if not spec.submodule_search_locations:
        return {Path(spec.origin).name: Path(spec.origin)} if spec.origin else {}
    folders = map(Path, spec.submodule_search_locations)
    files = {
        file.relative_to(folder).as_posix(): file
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix in (".py", ".so")
    }
    return dict(sorted(files.items()))


def _trusted_package(module_name: str, trust: Collection[str], key: Key) -> str:
    """Return the trusted package that holds a module; raise `TrustError` if there is none."""
    for package in trust:
        if _is_inside(module_name, package):
            return package
    root = module_name.partition(".")[0]
    raise TrustError(
        f"the config asks to import {module_name!r}, which is not trusted",
        hint=f"if you trust this code, add --trust {root} (in Python: trust=[{root!r}])",
        key=(*key, "path"),
    )


def _is_inside(module_name: str, package: str) -> bool:
    """Tell whether a module is a package or a part of it."""
    # With the dot: `my_pkg_evil` is not inside `my_pkg`.
    return module_name == package or module_name.startswith(f"{package}.")


def _foreign_home(found: Any, package: str) -> str | None:
    """Return the module that `found` comes from if that is not inside `package`, else None.

    Partials, methods and decorated functions are unwrapped. The function that a decorator returns
    may be of any library; its `__module__` (set by `functools.wraps`) and the innermost function
    may not.
    """
    for _ in range(_MAX_WRAPPERS):
        while isinstance(found, partial | MethodType):
            found = found.func if isinstance(found, partial) else found.__func__
        # A function written in C may have no `__module__`.
        homes = [getattr(found, "__module__", None) or type(found).__name__]
        inner = getattr(found, "__wrapped__", None)
        # `__module__` can be assigned; the globals of a function name the module that defined it.
        if inner is None and isinstance(found, FunctionType):
            homes.append(str(found.__globals__.get("__name__")))
        for home in homes:
            if not callable(found) or not _is_inside(home, package):
                return home
        if inner is None:
            return None
        found = inner
    return "wrappers without end"


def _form_hint(module: str, name: str) -> str:
    """Return a hint on how to write `path:`; a file name is turned into a module name."""
    dotted = module_of_file(module)
    if dotted is None:
        return f"such as {module if is_dotted_name(module) else 'my_pkg.nets'}:Net"
    package = dotted.partition(".")[0]
    return (
        f"path: {dotted}:{name or 'Net'} and --trust {package}: a file is named as a module, and "
        "looked for beside the config"
    )


def _module(name: str, trust: Trust, key: Key) -> ModuleType:
    """Import a module, also from the folder of the config; raise if it does not exist."""
    if not is_dotted_name(name):
        raise FinetuneError(f"no module named {name!r}", key=(*key, "path"))
    try:
        with _found_beside_the_config(trust):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A trusted module that exists but lacks one of its own dependencies: the traceback helps
        # more.
        if error.name is None or not _is_inside(name, error.name):
            raise
        raise FinetuneError(
            f"no module named {name!r}{_searched(trust)}",
            hint="install the package, or name its folder in PYTHONPATH: "
            "the current folder is not searched",
            key=(*key, "path"),
        ) from error


def _searched(trust: Trust) -> str:
    """Return the folder that was searched, as a part of a message; "" if there is none."""
    return (
        ""
        if trust.folder is None
        else f", neither installed nor in the folder {str(trust.folder)!r}"
    )


@dataclass(frozen=True, slots=True)
class _Beside:
    """Import hook that finds trusted packages, and no other module, in the folder of the config."""

    names: frozenset[str]
    folder: Path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a trusted top-level module in the folder, or None."""
        if path is not None or name not in self.names:
            return None
        spec = PathFinder.find_spec(name, [str(self.folder)])
        if spec is not None:
            spec.loader_state = _FoundIn(self.folder)
        return spec


@dataclass(frozen=True, slots=True)
class _FoundIn:
    """Marks a module that was imported from the folder of a config."""

    folder: Path


def _forget_others(trust: Trust) -> None:
    """Remove from `sys.modules` trusted modules imported from the folder of another config.

    Python keeps modules by name: a second config would get the `mynet` of the first one.
    """
    for root in {name.partition(".")[0] for name in trust}:
        spec = getattr(sys.modules.get(root), "__spec__", None)
        found = getattr(spec, "loader_state", None)
        if isinstance(found, _FoundIn) and found.folder != trust.folder:
            for name in [name for name in sys.modules if _is_inside(name, root)]:
                del sys.modules[name]


@contextmanager
def _found_beside_the_config(trust: Trust) -> Iterator[None]:
    """Inside the block, look for trusted packages in the config's folder too, after all else.

    So a file in that folder cannot replace an installed package or a module of Python.
    """
    _forget_others(trust)
    if trust.folder is None:
        yield
        return
    finder = _Beside(frozenset(name.partition(".")[0] for name in trust), trust.folder)
    importlib.invalidate_caches()  # the file may be younger than the last look at its folder
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _attribute(module: ModuleType, qualname: str, path: str, key: Key) -> Any:
    """Return the attribute `Class.method` of a module; private names are refused."""
    found: Any = module
    for step in qualname.split("."):
        # `my_pkg.nets:os.system` would reach any module that a trusted one has imported.
        if isinstance(found, ModuleType) and found is not module:
            raise TrustError(f"{path!r} walks through a module", key=(*key, "path"))
        if step.startswith("_") or not hasattr(found, step):
            raise FinetuneError(f"{path!r}: no public name {step!r}", key=(*key, "path"))
        found = getattr(found, step)
    return found
