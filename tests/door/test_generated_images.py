"""Images drawn at random in all modes and formats are read right, or refused in one short line."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from finetune.config.data import DataConfig
from finetune.config.task_keys import Task
from finetune.data.incoming.prepare_inputs import prepare_inputs
from finetune.data.prepare import open_data, prepare_data
from finetune.errors import FinetuneError
from finetune.models.preprocessing import Preprocessing

NOTHING = Preprocessing(None, None)
CLASSES = TypeAdapter(Task).validate_python({"type": "classification"})
FORMATS = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("PNG", "JPEG", "TIFF", "GIF", "BMP"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "GIF", "BMP"),
    "P with transparency": ("PNG", "GIF"),
    "RGB": ("PNG", "JPEG", "TIFF", "WEBP", "BMP"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "CMYK": ("TIFF", "JPEG"),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
    "YCbCr": ("TIFF", "JPEG"),
}
WITH_EXIF = ("PNG", "JPEG", "TIFF", "WEBP")
EXACT = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}


@dataclass
class Drawn:
    """An image file, and what a viewer shows of it, made from the numbers that were drawn."""

    raw: bytes
    shown: np.ndarray
    """(H, W, 3) of 0 to 255."""
    mode: str
    form: str
    keys: dict
    is_refused: bool


def laid_on_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def draw(seed):
    """Draw an image of any mode; equal neighbours, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    mode = list(FORMATS)[seed % len(FORMATS)]
    form = str(rng.choice(FORMATS[mode]))
    height, width = rng.integers(1, 25, 2)
    numbers = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    if form == "JPEG":
        numbers[:] = numbers[0, 0]
    image, shown, keys, is_refused = PICTURES[mode](numbers, rng)
    settings = dict(EXACT.get(form, {}))
    if "with transparency" in mode:
        settings["transparency"] = 7
    if form in WITH_EXIF and rng.random() < 0.5:
        flag = int(rng.integers(1, 9))
        settings["exif"] = Image.Exif()
        settings["exif"][0x0112] = flag
        shown = upright(shown, flag)
    file = BytesIO()
    image.save(file, form, **settings)
    return Drawn(file.getvalue(), shown, mode, form, keys, is_refused)


def upright(stored, flag):
    turned = np.swapaxes(stored, 0, 1) if flag >= 5 else stored
    if flag in (3, 4, 7, 8):
        turned = turned[::-1]
    return turned[:, ::-1] if flag in (2, 3, 6, 7) else turned


def thrice(grey):
    return np.repeat(np.asarray(grey, float)[..., None], 3, 2)


def one_bit(numbers, rng):
    bits = numbers[..., 0] > 127
    return Image.fromarray(bits), thrice(bits * 255), {}, False


def eight_bits(numbers, rng):
    return Image.fromarray(numbers[..., 0]), thrice(numbers[..., 0]), {}, False


def grey_alpha(numbers, rng):
    image = Image.merge(
        "LA", [Image.fromarray(np.ascontiguousarray(numbers[..., n])) for n in (0, 3)]
    )
    return image, laid_on_white(thrice(numbers[..., 0]), numbers[..., 3]), {}, False


def palette(numbers, rng):
    colours = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    image = Image.fromarray(numbers[..., 0], "P")
    image.putpalette(colours.tobytes())
    return image, colours[numbers[..., 0]].astype(float), {}, False


def palette_with_transparency(numbers, rng):
    image, shown, _, _ = palette(numbers, rng)
    return image, np.where(numbers[..., :1] == 7, 255.0, shown), {}, False


def colour(numbers, rng):
    pixels = np.ascontiguousarray(numbers[..., :3])
    return Image.fromarray(pixels), pixels.astype(float), {}, False


def colour_alpha(numbers, rng):
    shown = laid_on_white(numbers[..., :3].astype(float), numbers[..., 3])
    return Image.fromarray(numbers, "RGBA"), shown, {}, False


def cmyk(numbers, rng):
    ink = 255.0 - numbers
    return Image.fromarray(numbers, "CMYK"), ink[..., :3] * ink[..., 3:] / 255, {}, False


def sixteen_bits(numbers, rng):
    values = numbers[..., 0].astype(np.uint16) * 256 + numbers[..., 1]
    return Image.fromarray(values), thrice(values / 257), {}, False


def in_range(values, rng):
    """Return with half of the images a range that they are read by; the others are refused."""
    if rng.random() < 0.5:
        return Image.fromarray(values), thrice(values), {}, True
    low, high = -100.0, 5000.0
    shown = ((values.astype(float) - low) / (high - low)).clip(0, 1) * 255
    return Image.fromarray(values), thrice(shown), {"range": [low, high]}, False


def whole_numbers(numbers, rng):
    return in_range(numbers[..., 0].astype(np.int32) * 20 - 200, rng)


def floats(numbers, rng):
    if rng.random() < 0.5:
        values = (numbers[..., 0] / 255).astype(np.float32)
        return Image.fromarray(values), thrice(values * 255), {}, False
    return in_range(numbers[..., 0].astype(np.float32) * 20 + 1.5, rng)


def luminance(numbers, rng):
    """Invert JFIF 1.02: R = Y + 1.402 (Cr - 128), and so on."""
    y, cb, cr = (numbers[..., n].astype(float) - (128 if n else 0) for n in range(3))
    shown = np.stack([y + 1.402 * cr, y - 0.34414 * cb - 0.71414 * cr, y + 1.772 * cb], 2)
    image = Image.fromarray(np.ascontiguousarray(numbers[..., :3]), "YCbCr")
    return image, shown.clip(0, 255), {}, False


PICTURES = dict(
    zip(
        FORMATS,
        [
            *(one_bit, eight_bits, grey_alpha, palette, palette_with_transparency, colour),
            *(colour_alpha, cmyk, sixteen_bits, whole_numbers, floats, luminance),
        ],
        strict=True,
    )
)


def read(folder, raw, keys):
    """Return an image as training and as prediction read it, or the error of each."""
    for label in "ab":
        (folder / label).mkdir(exist_ok=True)
        (folder / label / "image").write_bytes(raw)
    source = {"type": "imagefolder", "path": str(folder), "within": str(folder.parent), **keys}
    config = DataConfig.model_validate({"source": source})
    kept = []
    try:
        opened = open_data(config, CLASSES, seed=0, trust=())
        kept += [note for note in opened.facts.notes if "exact copies" not in note]
        trained = prepare_data(opened, config, NOTHING, seed=0, trust=()).train.fetch([0])
        facts = opened.facts
    except FinetuneError as error:
        return error, error, kept
    samples = prepare_inputs({"image": [folder / "a/image"]}, config, facts, NOTHING, trust=())
    return trained.inputs["image"][0], samples.fetch([0]).inputs["image"][0], kept


def check(folder, seed):
    drawn = draw(seed)
    rng = np.random.default_rng(seed + 10**6)
    damage = rng.choice(["none", "none", "cut", "flipped"])
    raw = bytearray(drawn.raw)
    if damage == "cut":
        raw = raw[: rng.integers(len(raw))]
    for position in rng.integers(len(raw), size=2) if damage == "flipped" else ():
        raw[position] ^= 1 << rng.integers(8)
    trained, predicted, notes = read(folder, bytes(raw), drawn.keys)
    case = f"seed {seed}: {drawn.mode} {drawn.form} {damage} {drawn.keys}"
    assert all(len(note) <= 500 for note in notes), case
    if isinstance(trained, FinetuneError):
        assert damage != "none" or drawn.is_refused, f"{case}: {trained}"
        assert all(len(line) <= 500 for line in str(trained).splitlines()), case
        assert not drawn.is_refused or damage != "none" or "range: [" in trained.hint, case
        return
    assert torch.equal(trained, predicted), case
    if damage == "flipped" and drawn.form != "PNG":
        return  # other formats have no checksums: nobody can tell
    assert not drawn.is_refused, case
    found = trained.permute(1, 2, 0).numpy() * 255
    assert found.shape == drawn.shown.shape, case
    bound = 4 if drawn.form == "JPEG" or drawn.mode in ("YCbCr", "CMYK") else 1.01
    assert np.abs(found - drawn.shown).max() <= bound, case


def test_40_generated_images_are_read_right_or_refused_in_one_line(tmp_path):
    for seed in range(40):
        check(tmp_path, seed)


@pytest.mark.slow
def test_500_generated_images_are_read_right_or_refused_in_one_line(tmp_path):
    for seed in range(40, 540):
        check(tmp_path, seed)
