"""Images are read as a viewer shows them, alike wherever they are read, or refused in one line."""

import csv
import json
from dataclasses import replace
from io import BytesIO
from struct import pack
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from finetune.config.data import DataConfig
from finetune.config.source_keys import Source
from finetune.config.task_keys import Task
from finetune.data.images import images_of
from finetune.data.incoming.prepare_inputs import prepare_inputs
from finetune.data.media.decoding import open_image, read_header
from finetune.data.media.image_headers import MOST_LOOKED_AT, in_one_mode, look_at, notes_on
from finetune.data.prepare import open_data, prepare_data
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing

NOTHING = Preprocessing(None, None)
CLASSES = TypeAdapter(Task).validate_python({"type": "classification"})


@pytest.fixture
def folder(tmp_path):
    """Return a function that saves images in turn as classes `a` and `b`, and gives the source."""

    def write(*images, ending="png", **keys):
        for number, image in enumerate(images):
            path = tmp_path / "data" / "ab"[number % 2] / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image if isinstance(image, bytes) else encoded(image))
        return {"type": "imagefolder", "path": str(tmp_path / "data"), **keys}

    return write


@pytest.fixture
def table(tmp_path):
    """Return a function that saves images and a table of them, and gives the source."""

    def write(*images, name="data", column="image", **keys):
        rows = [[column, "label"]]
        for number, image in enumerate(images):
            image.save(tmp_path / f"{name}{number}.png")
            rows.append([f"{name}{number}.png", "ab"[number % 2]])
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return {"type": "csv", "path": str(tmp_path / f"{name}.csv"), **keys}

    return write


def encoded(image, form="PNG", **settings):
    file = BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def read(data):
    """Return the samples of a config in order, as the network sees them, and the notes."""
    config = DataConfig.model_validate(data)
    opened = open_data(config, CLASSES, seed=0, trust=())
    prepared = prepare_data(opened, config, NOTHING, seed=0, trust=())
    name = opened.facts.inputs[0]
    batch = prepared.train.fetch(torch.arange(len(prepared.train)))
    return batch.inputs[name], opened.facts


def predicted(data, facts, values):
    """Return values as prediction reads them."""
    config = DataConfig.model_validate(data)
    rows = {facts.inputs[0]: values}
    samples = prepare_inputs(rows, config, facts, NOTHING, trust=())
    return samples.fetch(torch.arange(len(values))).inputs[facts.inputs[0]]


def of_8_bits(image):
    """Return a tensor as pixels of 0 to 255, (H, W) or (H, W, C)."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()


def grey(value, mode="L"):
    return Image.new(mode, (6, 5), value)


RED = Image.new("RGB", (6, 5), (200, 10, 20))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["grey first", "grey last"])
def test_one_grey_image_does_not_make_a_column_grey(table, order):
    pictures = [grey(59), RED]
    images, facts = read({"source": table(*(pictures[n] for n in order))})
    assert images.shape == (2, 3, 5, 6)
    assert facts.kinds == {"image": "image"}
    [note] = facts.notes
    assert "1 of 2 images are grey, read as RGB" in note
    assert "channels: grey" in note


def test_a_grey_validation_part_is_read_in_the_colours_of_training(table):
    train, validation = table(RED, RED.rotate(180)), table(grey(3), grey(7), name="val")
    config = DataConfig.model_validate({"train": train, "validation": validation})
    opened = open_data(config, CLASSES, seed=0, trust=())
    assert opened.validation.table.columns["image"].mode == "RGB"


def test_a_column_of_grey_images_alone_stays_grey(table):
    images, facts = read({"source": table(grey(59), grey(60))})
    assert images.shape == (2, 1, 5, 6)
    assert facts.notes == ()


@pytest.mark.parametrize(("channels", "count"), [("grey", 1), ("rgb", 3)])
def test_channels_says_how_all_images_are_read(table, folder, channels, count):
    for source in (
        table(grey(59), RED, channels=channels),
        folder(grey(59), RED, channels=channels),
    ):
        assert read({"source": source})[0].shape[1] == count


DEEP = np.arange(30).reshape(5, 6) * 2100 + 1


@pytest.mark.parametrize(
    ("values", "form", "top"),
    [
        (DEEP.astype(np.uint16), "PNG", 65535),
        (DEEP.astype(np.uint16), "TIFF", 65535),
        (DEEP.astype(np.int32), "PPM", 65535),
        ((DEEP / 65535).astype(np.float32), "TIFF", 1),
    ],
    ids=["png", "tiff", "pgm", "float"],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_more_than_8_bits_are_scaled_by_the_range_of_their_type(
    folder, values, form, top, mode
):
    raw = encoded(Image.fromarray(values), form)
    images, facts = read({"source": folder(raw, raw, mode=mode)})
    expected = torch.from_numpy(values / top).float().expand_as(images[0])
    torch.testing.assert_close(images[0], expected, atol=0.5 / 255 + 1e-4, rtol=0)
    assert any("2 of 2 images have more than 8 bits" in note for note in facts.notes)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (DEEP.astype(np.int32), "whole numbers of 32 bits from 1 to 60901"),
        (DEEP.astype(np.float32), "floats from 1 to 60901"),
    ],
    ids=["32 bits", "floats"],
)
def test_values_of_which_none_is_known_to_be_white_need_a_range(folder, values, told):
    raw = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(DataError, match=told) as caught:
        read({"source": folder(raw, raw)})
    assert "range: [1, 60901]" in caught.value.hint
    data = {"source": folder(raw, raw, mode="L", range=[1, 60901])}
    images, facts = read(data)
    assert of_8_bits(images[0]).min() == 0
    assert of_8_bits(images[0]).max() == 255
    assert torch.equal(predicted(data, facts, [raw, raw]), images)


def test_a_range_that_changes_no_image_is_told(folder):
    _, facts = read({"source": folder(RED, RED, range=[0, 4095])})
    assert any("range changes no image, all 2 images have 8 bits" in n for n in facts.notes)


@pytest.mark.parametrize("flag", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_upright_as_exif_says(folder, flag, form):
    upright = np.zeros((16, 8), np.uint8)
    upright[:8, :4] = 255
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, 3),
    }[flag]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = flag
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    raw = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **exact)
    data = {"source": folder(raw, raw, mode="L")}
    images, facts = read(data)
    assert of_8_bits(images[0]).shape == upright.shape
    assert np.abs(of_8_bits(images[0]).astype(int) - upright).max() <= 8
    assert torch.equal(predicted(data, facts, [raw]), images[:1])
    told = any("turned upright" in note for note in facts.notes)
    assert told or flag == 1 or form == "PNG"


@pytest.mark.parametrize("flag", range(2, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_mask_is_turned_as_its_image_is(tmp_path, flag, form):
    values = np.zeros((4, 6), np.uint8)
    values[0], values[0, 0] = 1, 2
    exif, path = Image.Exif(), tmp_path / "mask"
    exif[0x0112] = flag
    exact = {"WEBP": {"lossless": True}}.get(form, {})
    path.write_bytes(encoded(Image.fromarray(values), form, exif=exif, **exact))
    mask, image = (np.asarray(open_image(path, mode)) for mode in ("mask", "L"))
    assert np.array_equal(mask, image)
    header = read_header(path)
    assert (header.size[::-1] if header.lies else header.size) == image.shape[::-1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1 bit"])
@pytest.mark.parametrize("background", ["white", "#102030", [7, 8, 9]])
def test_what_is_hidden_under_transparency_is_not_seen(folder, mode, background):
    data = {"source": folder(*_two_cutouts(mode), background=background)}
    images, facts = read(data)
    assert torch.equal(images[0], images[1])
    corner = {"white": (255,) * 3, "#102030": (16, 32, 48)}.get(str(background), background)
    assert tuple(of_8_bits(images[0])[0, 0]) == tuple(corner)
    assert torch.equal(predicted(data, facts, _two_cutouts(mode)), images)
    assert any("2 of 2 images are transparent" in note for note in facts.notes)


def _two_cutouts(mode):
    """Return two images that look the same, with other colours where they are transparent."""
    if mode == "1 bit":
        return [encoded(Image.new("1", (4, 4), v), transparency=255 * v) for v in (0, 1)]
    made = []
    for hidden in (0, 255):
        pixels = np.full((4, 4, 4), hidden, np.uint8)
        pixels[..., 3] = 0
        pixels[2:, 2:] = (90, 90, 90, 255)
        image = Image.fromarray(pixels, "RGBA")
        made.append(encoded(image.quantize(4) if mode == "P" else image.convert(mode)))
    return made


def test_a_key_for_images_where_there_are_none_is_refused(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("x,label\n1,a\n2,b\n")
    for keys in ({"background": "red"}, {"range": [0, 1]}, {"channels": "grey"}):
        with pytest.raises(DataError, match="no input column holds images"):
            read({"source": {"type": "csv", "path": str(path), **keys}})


@pytest.fixture
def arrays(tmp_path):
    """Return a function that saves arrays, and gives the source."""

    def write(images, **keys):
        np.savez(tmp_path / "data.npz", image=images, label=np.arange(len(images)) % 2)
        return {"type": "arrays", "path": str(tmp_path / "data.npz"), **keys}

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_with_channels_last_are_told_by_their_shape(arrays, dtype, channels):
    values = np.random.default_rng(0).integers(0, 256, (4, 9, 7, channels)).astype(dtype)
    data = {"source": arrays(values)}
    images, facts = read(data)
    assert images.shape == (4, channels, 9, 7)
    assert any("channels last (channels: first says otherwise)" in n for n in facts.notes)
    if channels < 4 or dtype is np.uint8:
        assert torch.equal(predicted(data, facts, list(values)), images)


def test_channels_first_and_last_are_taken_at_their_word(arrays):
    values = np.zeros((4, 9, 7, 3), np.uint8)
    assert read({"source": arrays(values, channels="first")})[0].shape == (4, 9, 7, 3)
    values = np.zeros((4, 3, 3, 3), np.uint8)
    values[:, :, :, 0] = 255
    data = {"source": arrays(values, channels="last")}
    images, facts = read(data)
    assert (images[:, 0] == 1).all()
    assert torch.equal(predicted(data, facts, list(values)), images)


def test_arrays_with_channels_first_stay_as_they_are(arrays):
    values = np.random.default_rng(0).random((4, 3, 9, 7)).astype(np.float32)
    images, facts = read({"source": arrays(values)})
    assert torch.equal(images, torch.from_numpy(values))
    assert facts.notes == ()


def test_a_shape_that_would_mix_the_channels_is_refused(arrays):
    columns = {"image": {"array": "image", "shape": [3, 9, 7]}, "label": {"array": "label"}}
    with pytest.raises(DataError, match="would mix their channels") as caught:
        read({"source": arrays(np.zeros((4, 9, 7, 3), np.uint8), columns=columns)})
    assert "channels: last" in caught.value.hint


def test_nested_lists_of_a_jsonl_file_take_channels_last(tmp_path):
    path = tmp_path / "data.jsonl"
    picture = np.zeros((8, 8, 3), int).tolist()
    rows = [json.dumps({"image": picture, "label": label}) for label in "ab"]
    path.write_text("\n".join(rows))
    images, _ = read({"source": {"type": "jsonl", "path": str(path)}})
    assert images.shape == (2, 3, 8, 8)


def test_several_frames_and_cmyk_are_told(folder):
    frames = encoded(RED, "GIF", save_all=True, append_images=[RED.rotate(180), grey(0)])
    images, facts = read({"source": folder(frames, encoded(RED.convert("CMYK"), "TIFF"))})
    assert any("1 of 2 images have several frames" in note for note in facts.notes)
    assert any("1 of 2 images are CMYK" in note for note in facts.notes)
    assert tuple(of_8_bits(images[0])[0, 0]) == (200, 10, 20)


def test_keys_that_change_what_is_read_change_the_identity_of_the_data(folder):
    rgba = Image.new("RGBA", (4, 4), (1, 2, 3, 0))
    found = set()
    for background in ("white", "black"):
        config = DataConfig.model_validate({"source": folder(rgba, rgba, background=background)})
        opened = open_data(config, CLASSES, seed=0, trust=())
        found.add(
            (opened.identity.columns["image"], opened.train.table.columns["image"].fingerprint())
        )
    assert len({identity for identity, _ in found}) == len({key for _, key in found}) == 2


def test_the_path_of_an_image_may_be_a_text(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (1, 1), (200, 10, 20))))
    assert open_image(str(path), "RGB").getpixel((0, 0)) == (200, 10, 20)


def test_a_png_whose_checksum_is_wrong_is_never_read(folder):
    """Also one so small that Pillow has all its pixels before it meets the checksum."""
    raw = encoded(Image.new("RGB", (1, 1), (200, 10, 20)))
    for position in range(37, len(raw) - 12):  # behind the length, which changes no pixel
        damaged = bytearray(raw)
        damaged[position] ^= 4
        with pytest.raises(DataError, match="cannot read the image"):
            open_image(bytes(damaged), "RGB")


def test_colour_beyond_the_headers_that_were_looked_at_is_refused():
    items = [encoded(grey(7))] * MOST_LOOKED_AT + [encoded(RED)] * 2
    looked = look_at(images_of(items), seed=0)
    assert len(looked.headers) == MOST_LOOKED_AT
    greys = replace(looked, headers=dict.fromkeys(looked.headers, looked.images.header(0)))
    [found] = in_one_mode([greys])
    assert found.images.mode == "L"
    assert found.images[0].mode == "L"
    with pytest.raises(DataError, match="has colour") as caught:
        found.images[len(items) - 1]
    assert "channels: rgb" in caught.value.hint
    assert f"{MOST_LOOKED_AT:,} looked at of {len(items):,} images" in notes_on("x", [looked])[0]


def test_images_of_pillow_are_read_as_their_files_are(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (3, 2), (9, 9, 9, 0))
    raws = [encoded(clear, exif=exif), encoded(Image.fromarray(DEEP.astype(np.uint16)), exif=exif)]
    for raw in raws:
        data = {"source": folder(raw, raw)}
        images, facts = read(data)
        assert torch.equal(predicted(data, facts, [Image.open(BytesIO(raw))]), images[:1])


def test_keys_of_a_parquet_file_are_followed(tmp_path):
    datasets = pytest.importorskip("datasets")
    rgba = [Image.new("RGBA", (4, 4), (1, 2, 3, 0))] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": rgba, "label": ["a", "b"]}, features)
    made.to_parquet(str(tmp_path / "data.parquet"))
    source = {"type": "parquet", "path": str(tmp_path / "data.parquet"), "background": "red"}
    images, _ = read({"source": source})
    assert (images == torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)).all()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"background": "mauve"}, "no colour 'mauve'"),
        ({"background": [1, 2, 300]}, "255"),
        ({"range": [5, 5]}, "smaller value first"),
        ({"channels": "last"}, "is for arrays"),
        ({"channels": "grey", "mode": "RGB"}, "contradict"),
    ],
)
def test_a_key_for_images_that_makes_no_sense_is_refused(keys, told):
    with pytest.raises(ValidationError, match=told):
        TypeAdapter(Source).validate_python({"type": "imagefolder", "path": "x", **keys})


def png_of_16_bit_colours(values):
    """Return (H, W, 3) numbers of 16 bits as a PNG, which Pillow does not write."""

    def chunk(kind, body):
        return pack(">I", len(body)) + kind + body + pack(">I", crc32(kind + body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colours_of_16_bits_are_scaled_and_told_and_take_no_range(folder):
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, 3))
    raw = png_of_16_bit_colours(values)
    images, facts = read({"source": folder(raw, raw)})
    assert np.abs(of_8_bits(images[0]) - values / 257).max() <= 1
    assert any("2 of 2 images have 16 bits for each colour" in note for note in facts.notes)
    with pytest.raises(DataError, match="range is for grey images"):
        read({"source": folder(raw, raw, range=[0, 4095])})


def white_is_zero(values):
    return encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})


@pytest.mark.parametrize(
    ("dtype", "top", "keys"),
    [
        (np.uint8, 255, {}),
        (np.uint16, 65535, {}),
        (np.uint16, 4095, {"range": [0, 4095]}),
        (np.float32, 1, {}),
    ],
    ids=["8 bits", "16 bits", "12 of 16 bits", "floats"],
)
def test_a_tiff_whose_white_is_zero_is_read_as_a_viewer_shows_it(folder, dtype, top, keys):
    shares = np.arange(32).reshape(4, 8) / 31
    raw = white_is_zero((shares * top).astype(dtype))
    # Pillow writes values of 8 bits inverted under this tag, and others as they are.
    seen = shares if dtype == np.uint8 else 1 - shares
    images, _ = read({"source": folder(raw, raw, mode="L", **keys)})
    expected = torch.from_numpy(seen).float()[None]
    torch.testing.assert_close(images[0], expected, atol=1.1 / 255, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_whose_white_is_zero_is_refused(tmp_path, dtype):
    (tmp_path / "mask.tif").write_bytes(white_is_zero(np.eye(4).astype(dtype)))
    with pytest.raises(DataError, match="whose white is 0"):
        open_image(tmp_path / "mask.tif", "mask")


def test_a_tiff_of_12_bits_is_scaled_by_12_bits(folder):
    tags = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 3),
    ]
    entries = b"".join(pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = bytes([0xFF, 0xF8, 0x00])  # 0xFFF and 0x800
    raw = b"II*\0" + pack("<I", 12) + pixels + b"\0" + pack("<H", len(tags)) + entries + bytes(4)
    images, _ = read({"source": folder(raw, raw, mode="L")})
    assert of_8_bits(images[0]).tolist() == [[255, 128]]
