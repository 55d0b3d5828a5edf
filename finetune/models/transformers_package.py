"""Load the package `transformers`, which many networks and all tokenizers come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.importing import require

_MODELS = "models."
"""Beginning of the names of modules that hold the code of networks."""


def load_transformers() -> Any:
    """Import `transformers`, and return it.

    Raises:
        FinetuneError: it is not installed.
    """
    transformers = require("transformers", extra="text")
    names = transformers.utils.import_utils
    if not isinstance(getattr(names, "define_import_structure", None), _ReadOnce):
        _read_once(transformers, names)
    return transformers


class _ReadOnce:
    """Returns the names in the code of all networks from what `transformers` has read already.

    The package looks for the names that its 1,600 files of networks define by reading all of them,
    when it is imported and again at the first use of a network or tokenizer: half a CPU second.
    Its own cache does not help, since it has fewer places than there are folders.
    """

    def __init__(self, read: Callable[..., Any], folder: Path) -> None:
        self._read = read
        self._folder = folder

    def __call__(self, module_path: Any, prefix: str | None = None) -> Any:
        """Return names of modules by what they need, as the function of the same arguments does."""
        if prefix is not None or Path(module_path) != self._folder / "__init__.py":
            return self._read(module_path, prefix=prefix)
        # With these arguments `transformers` itself has asked: a function of its own remembers.
        known = self._read(self._folder, prefix=_MODELS[:-1])
        inside = {
            needs: {
                name.removeprefix(_MODELS): found
                for name, found in modules.items()
                if name.startswith(_MODELS)
            }
            for needs, modules in known.items()
        }
        return {needs: modules for needs, modules in inside.items() if modules}


def _read_once(transformers: Any, names: Any) -> None:
    """Let the package use what it has read, if this version of it reads as we know it."""
    read = getattr(names, "define_import_structure", None)
    if read is not None and hasattr(read, "cache_info"):
        folder = Path(transformers.__file__).parent / "models"
        names.define_import_structure = _ReadOnce(read, folder)
