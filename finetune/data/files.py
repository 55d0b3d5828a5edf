"""Readers of folders of classes, texts and images; of one file as a text; of one csv file."""

from pathlib import Path

from finetune.config.data import CsvSource, TextFolderSource
from finetune.data.folders import files_by_class, refuse_endless
from finetune.data.images import images_of
from finetune.data.readers.forms import content_of_bytes
from finetune.data.table import Column, Listed
from finetune.data.tabular import FORM_OF, dialect_of, read_tables
from finetune.errors import DataError, Key
from finetune.importing import package_path


def existing(text: str, key: Key, *, folder: bool) -> Path:
    """Resolve a path of the config to the file, or the folder, that must be there.

    Raises:
        DataError: it is not there, is the other of the two, or a pipe or a device.
    """
    path = package_path(text, key=key)
    wanted, other = ("folder", "file") if folder else ("file", "folder")
    if not path.exists():
        raise DataError(f"no such {wanted} {str(path)!r}", key=key)
    if path.is_dir() is not folder:
        raise DataError(f"needs a {wanted}, {str(path)!r} is a {other}", key=key)
    if not folder:
        refuse_endless(path, key)
    return path


def read_csv(path: Path, source: CsvSource, key: Key) -> dict[str, Column]:
    """Read one file alone as a source says, all its columns.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_tables([path], dialect_of(source), FORM_OF[source.type], None).columns
    except DataError as error:
        error.key = error.key or (*key, "path")
        raise


def read_text_folder(
    path: Path, source: TextFolderSource, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Read every file of every subfolder as `text`, in sorted order, the subfolder as `label`.

    Returns with the columns what is told of them.

    Raises:
        DataError: a file is not valid in the encoding, or a symbolic link leaves `within`.
    """
    found = files_by_class(path, within, key, images=False)
    texts = [read_text(file, source, key) for file in found.files]
    return {"text": Listed(texts, "text"), "label": Listed(found.labels, "text")}, found.notes


def read_image_folder(
    path: Path, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """List every image of every subfolder as `image`, in sorted order, the subfolder as `label`.

    Returns with the columns what is told of them.

    Raises:
        DataError: a symbolic link leaves `within`.
    """
    found = files_by_class(path, within, key, images=True)
    return {"image": images_of(found.files), "label": Listed(found.labels, "text")}, found.notes


def read_text(file: Path, source: TextFolderSource, key: Key) -> str:
    """Read a whole file as text, in the encoding of `source`.

    Raises:
        DataError: it cannot be read, or is not valid in that encoding.
    """
    try:
        raw = file.read_bytes()
        content = content_of_bytes(raw[:4096], source.encoding)
        encoding = content.encoding if content.is_told and content.encoding else source.encoding
        return raw.decode(encoding, source.errors)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{str(file)!r} is not valid {source.encoding}: byte 0x{byte:02x} at {error.start}",
            hint="errors: replace, or the right encoding, such as encoding: latin-1",
            key=(*key, "encoding"),
        ) from error
    except LookupError as error:
        raise DataError(f"no encoding {source.encoding!r}", key=(*key, "encoding")) from error
    except OSError as error:
        raise DataError(
            f"cannot read {str(file)!r}: {error.strerror}", key=(*key, "path")
        ) from error
