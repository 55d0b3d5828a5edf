"""Headers that lie: one line, no traceback, no memory asked for on their word."""

import gzip
import io
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from finetune.config.model import WeightsConfig
from finetune.config.source_keys import ArraysSource, JsonlSource, ParquetSource
from finetune.data.images import images_of, open_image
from finetune.data.sources.open_source import open_source
from finetune.data.table import settle
from finetune.errors import DataError, FinetuneError
from finetune.models.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and Arrow warn of much that is odd

PICTURE = Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3))


def packed(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def picture(kind: str, **options) -> bytes:
    return packed(lambda file: PICTURE.save(file, kind, **options))


ARRAY = packed(lambda file: np.save(file, np.ones((3, 2), "f4")))
ARRAYS = {"features": np.ones((3, 2), "f4"), "target": np.zeros((3, 1), "i8")}
TABLE = pyarrow.table({"x": [1.5, 2.5], "y": [1, 2], "z": ["a", "b"], "l": [[1, 2], [3]]})
FILES = {
    "a.npy": ARRAY,
    "a.npz": packed(lambda file: np.savez(file, **ARRAYS)),
    "packed.npz": packed(lambda file: np.savez_compressed(file, **ARRAYS)),
    "a.csv.gz": gzip.compress(b"1,2\n3,4\n"),
    "a.png": picture("PNG"),
    "a.bmp": picture("BMP"),
    "a.gif": picture("GIF"),
    "a.tiff": picture("TIFF"),
    "deflated.tiff": picture("TIFF", compression="tiff_deflate"),
    "a.webp": picture("WEBP"),
    "a.ppm": picture("PPM"),
    "a.jpg": picture("JPEG"),
    "a.parquet": packed(lambda file: pyarrow.parquet.write_table(TABLE, file)),
    "a.safetensors": save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}),
    "a.jsonl": b'{"x": [1, 2.5], "y": 3, "z": "a"}\n{"x": [1, 2.5], "y": 4, "z": "b"}\n',
}


def read(path: Path) -> None:
    """Read a file as the project would."""
    match path.suffix:
        case ".npy" | ".npz" | ".gz":
            open_source(ArraysSource(type="arrays", path=str(path)), (), ())
        case ".parquet":
            open_source(ParquetSource(type="parquet", path=str(path)), (), ())
        case ".safetensors":
            load_weights(nn.Linear(3, 2), WeightsConfig(path=str(path)), key=())
        case ".jsonl":
            table = open_source(JsonlSource(type="jsonl", path=str(path)), (), ())
            for name, column in table.columns.items():
                settle(name, column.values, table.told)
        case _:
            images_of([path])
            open_image(path, "RGB")


def outcome(path: Path) -> str:
    """Return `read`, or the one line in which the file is refused."""
    began = time.thread_time()
    try:
        read(path)
        told = "read"
    except FinetuneError as error:
        told = str(error).splitlines()[0]
        assert told.strip()
    assert time.thread_time() - began < 5
    return told


ODD = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"9" * 30,
    b"-1",
    b"1e400",
]
EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.sampled_from(ODD), st.binary(min_size=1, max_size=4)),
    st.sampled_from(["replace", "insert", "cut", "end", "head"]),
)


def edited(content: bytes, edits) -> bytes:
    for share, piece, how in edits:
        # "head" stays within the first bytes, where headers are.
        place = int(share * (min(len(content), 150) if how == "head" else len(content)))
        match how:
            case "replace" | "head":
                content = content[:place] + piece + content[place + len(piece) :]
            case "insert":
                content = content[:place] + piece + content[place:]
            case "cut":
                content = content[:place] + content[place + len(piece) :]
            case "end":
                content = content[:place]
    return content


@pytest.mark.parametrize("name", FILES)
def test_the_file_itself_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert outcome(path) == "read"


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None)
@given(edits=st.lists(EDIT, min_size=1, max_size=3))
def test_no_edit_of_a_file_gives_a_traceback(name, tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / f"edited-{name}"
    path.write_bytes(edited(FILES[name], edits))
    outcome(path)


def npy(
    shape: str, descr: str = "'<f4'", body: bytes = b"\0" * 64, version: bytes = b"\1\0"
) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + body


LIES = {
    "a terabyte": (npy("(1000000000000, 4)"), "should hold"),
    "one row too many": (npy("(17,)"), "should hold (17,) of float32, 68 bytes, but has 64"),
    "10^30 rows": (npy(f"(1{'0' * 30}, 4)"), "should hold"),
    "10^4000 rows": (npy(f"(1{'0' * 4000}, 4)"), "should hold"),
    "many axes": (npy("(" + "9," * 60 + ")"), "should hold"),
    "nothing, 10^12 times": (npy("(1000000000000, 0)"), "nothing in it"),
    "negative": (npy("(-1, 4)"), "impossible shape"),
    "two negative": (npy("(-2, -2)"), "impossible shape"),
    "true": (npy("(True, 4)"), "impossible shape"),
    "a float": (npy("(1.5, 4)"), "shape"),
    "objects": (npy("(4,)", "'|O'"), "Python objects"),
    "objects in records": (npy("(4,)", "[('a', '|O')]"), "Python objects"),
    "texts of no length": (npy("(1000000000000,)", "'|S0'"), "values of no bytes"),
    "void of no length": (npy("(1000000000000,)", "'|V0'"), "values of no bytes"),
    "long texts": (npy("(4,)", "'<U2000000000'"), "cannot read numbers"),
    "version 3": (npy("(4,)", version=b"\3\0"), "unknown version"),
    "version 9": (npy("(4,)", version=b"\x09\0"), "unknown version"),
    "a long header": (b"\x93NUMPY\2\0" + struct.pack("<I", 2**31 - 1) + b" " * 9, "cannot read"),
    "no shape": (npy("None"), "cannot read"),
    "a call": (npy("__import__('os')"), "cannot read"),
    "a deep header": (npy("(" * 900 + ")" * 900), "cannot read"),
    "an unknown dtype": (npy("(4,)", "'<q4'"), "cannot read"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
@pytest.mark.parametrize("kind", ["npy", "npz", "packed npz"])
def test_an_array_that_promises_more_than_it_holds_is_refused(tmp_path, content, message, kind):
    path = tmp_path / f"a.{kind[-3:]}"
    path.write_bytes(content)
    if kind != "npy":
        method = zipfile.ZIP_DEFLATED if kind[0] == "p" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("features.npy", content)
    assert message in outcome(path)


def flagged(content: bytes, offset: int, value: int) -> bytes:
    """Change a byte of the first entry of an archive's directory."""
    changed = bytearray(content)
    changed[content.find(b"PK\1\2") + offset] = value
    return bytes(changed)


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return file.getvalue()


# Written under two names: zipfile warns of one that comes twice.
TWICE = archive(("a.npy", ARRAY), ("b.npy", ARRAY)).replace(b"b.npy", b"a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flagged(FILES["a.npz"], 8, 1), "is encrypted"),
        (flagged(FILES["a.npz"], 10, 99), "is packed by method 99"),
        (archive(("a.npy", ARRAY), method=zipfile.ZIP_LZMA), "is packed by method 14"),
        (archive(("a.npy", ARRAY), method=zipfile.ZIP_BZIP2), "is packed by method 12"),
        (TWICE, "two arrays in it"),
        (archive(("a.npy", ARRAY), ("a", ARRAY)), "two arrays in it"),
        (archive(("../a.npy", ARRAY)), "a file elsewhere"),
        (archive(("/etc/a.npy", ARRAY)), "a file elsewhere"),
        (archive(("b\\..\\..\\a.npy", ARRAY)), "a file elsewhere"),
        (archive(("a.npy", b"")), "no array of numpy"),
        (archive(("a.txt", b"hello")), "no array of numpy"),
    ],
)  # fmt: skip
def test_an_archive_that_numpy_did_not_write_is_refused(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert message in outcome(path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = zeros.compress(b"\0" * (1 << 20)) + zeros.flush()
    content = bytearray(archive(("a.npy", body)))
    for mark, size, method in ((b"PK\3\4", 22, 8), (b"PK\1\2", 24, 10)):
        place = content.find(mark)
        content[place + size : place + size + 4] = struct.pack("<I", 3 << 30)
        content[place + method] = zipfile.ZIP_DEFLATED
    path.write_bytes(content)
    assert f"its {len(content)} bytes unpack to {3 << 30} or more" in outcome(path)


def test_a_gzip_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.readers.forms._LARGE_BYTES", 1 << 20)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"0,0\n" * (1 << 20)))
    assert "unpack to" in outcome(path)


@pytest.mark.parametrize(
    "axes", [(100_000, 100_000), (13_000, 13_000), (2**31 - 1, 1), (1, 2**31 - 1)]
)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, axes):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *axes, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)))
    assert "pixels" in outcome(path)


def test_an_error_that_has_bytes_for_its_message_is_told_in_its_words(tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6\n99999999999999999999 1 255\n")
    assert "Token too long in file header" in outcome(path)


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg"])
def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch, name):
    path, marker = tmp_path / name, tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    assert "cannot read the image" in outcome(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("1" + "0" * 30, "in row 1 of .*, beyond 64 bits"),
        ("9223372036854775808", "holds 9223372036854775808 in row 1 of .*, beyond 64 bits"),
        ("-9223372036854775809", "beyond 64 bits"),
        ("1" + "0" * 4000, "holds a number of 13288 bits in row 1"),
        ("1" + "0" * 5000, "not JSON: exceeds the limit"),
    ],
)
def test_a_whole_number_that_no_tensor_holds_is_told_with_its_row(tmp_path, number, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": {number}}}\n' + json.dumps({"x": 1}) + "\n")
    with pytest.raises(DataError, match=message):
        read(path)
