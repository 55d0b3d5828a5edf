"""Load a tokenizer, or find that there is one without loading it."""

from pathlib import Path
from typing import Any

from finetune.errors import DataError, Key
from finetune.importing import package_path
from finetune.models.hub_cache import refuse_damaged_cache
from finetune.models.preprocessing import TOKENIZER_FILES
from finetune.models.shapes import first_line
from finetune.models.transformers_package import load_transformers
from finetune.process import collector_off


def refuse_missing_tokenizer(name: str, key: Key) -> None:
    """Raise unless there is a tokenizer in a folder, inside a package, or on the hub.

    Raises:
        DataError: there is none.
    """
    folder = package_path(name, key=key)
    # Not loaded to be found: that takes a while, and the transform will load it.
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        load_tokenizer(name, key)


def load_tokenizer(name: str, key: Key) -> Any:
    """Return the tokenizer from a folder, from a folder inside a package, or from the hub.

    Raises:
        DataError: there is none, or its files are damaged.
    """
    if name.startswith("package:"):
        name = str(package_path(name, key=(*key, "tokenizer")))
    if not Path(name).is_dir():
        refuse_damaged_cache(name, label="tokenizer", key=key)
    transformers = load_transformers()
    with collector_off():  # the name loads the modules behind it
        auto = transformers.AutoTokenizer
    try:
        return auto.from_pretrained(
            # Code that comes with a tokenizer is never run, and nobody is asked whether to.
            name,
            use_fast=True,
            trust_remote_code=False,
        )
    except Exception as error:  # `tokenizers` raises `Exception` itself for a damaged file
        raise DataError(
            f"cannot load the tokenizer {name!r}: {first_line(error)}",
            hint="a folder with its files (tokenizer.json or vocab.txt) works offline as well",
            key=key,
        ) from error
