"""Read folders of classes: texts, images, recordings; and one file as text."""

from pathlib import Path

from finetune.config.source_keys import (
    AudioFolderSource,
    ImageFolderSource,
    TextFolderSource,
)
from finetune.data.audio import audio_of
from finetune.data.images import images_of
from finetune.data.media.waveforms import SoundRules
from finetune.data.readers.forms import content_of_bytes
from finetune.data.sources.folders import (
    ClassFiles,
    files_by_class,
    files_with_labels,
    refuse_endless,
)
from finetune.data.table import Column, Listed
from finetune.errors import DataError, Key
from finetune.importing import package_path


def existing(text: str, key: Key, *, folder: bool) -> Path:
    """Return the path of a file or folder that the config names, which must exist.

    Raises:
        DataError: it does not exist, is the other of the two, or is a pipe or device.
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


def read_text_folder(
    path: Path, source: TextFolderSource, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Return the texts of all subfolders, in sorted order, as `text` and `label`, and notes.

    The label of a text is the name of its subfolder, or is found in its own name.

    Raises:
        DataError: a file is not valid in the encoding, or a symbolic link leaves `within`.
    """
    found = _files_of(path, source, within, key)
    texts = [read_text(file, source, key) for file in found.files]
    return {"text": Listed(texts, "text"), "label": Listed(found.labels, "text")}, found.notes


def read_image_folder(
    path: Path, source: ImageFolderSource, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Return the images of all subfolders, in sorted order, as `image` and `label`, and notes.

    The label of an image is the name of its subfolder, or is found in its own name.

    Raises:
        DataError: a symbolic link leaves `within`.
    """
    found = _files_of(path, source, within, key)
    return {"image": images_of(found.files), "label": Listed(found.labels, "text")}, found.notes


def read_audio_folder(
    path: Path, source: AudioFolderSource, within: Path, key: Key
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Return the recordings of all subfolders, in sorted order, as `audio` and `label`, and notes.

    The label of a recording is the name of its subfolder, or is found in its own name.

    Raises:
        DataError: a symbolic link leaves `within`.
    """
    found = _files_of(path, source, within, key)
    audio = audio_of(found.files, SoundRules.of(source))
    return {"audio": audio, "label": Listed(found.labels, "text")}, found.notes


def _files_of(
    path: Path,
    source: TextFolderSource | ImageFolderSource | AudioFolderSource,
    within: Path,
    key: Key,
) -> ClassFiles:
    """Return the samples of a folder, with labels by subfolder or by name."""
    if source.label is None:
        return files_by_class(path, within, key, source.type)
    return files_with_labels(path, within, key, source.type, source.label.regex)


def read_text(file: Path, source: TextFolderSource, key: Key) -> str:
    """Return the contents of a file as text, in the encoding of `source`.

    Raises:
        DataError: it cannot be read, or is not valid in that encoding.
    """
    try:
        raw = file.read_bytes()
        content = content_of_bytes(raw[:4096], source.encoding)
        # Before it is decoded: latin-1 makes a text of any bytes, also of those of an image.
        if content.other is not None:
            raise DataError(f"{str(file)!r} is {content.other}, no text", key=(*key, "path"))
        # A byte order mark in the file wins over the config: it is about this very file.
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
