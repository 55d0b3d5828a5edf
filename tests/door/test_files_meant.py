"""Image files that end too early are told by `plan`; a name of no file leads to the one meant."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from finetune.data.images import images_of
from finetune.data.media.decoding import read_header
from finetune.data.media.image_headers import in_one_mode, look_at, notes_on
from finetune.data.sources.file_names import missing_file
from finetune.errors import DataError

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP"]


def encoded(form, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def can_be_read(raw):
    try:
        Image.open(BytesIO(raw)).load()
    except (OSError, SyntaxError, EOFError):
        return False
    return True


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_file_is_known_by_its_end_exactly_where_it_cannot_be_read(form):
    raw = encoded(form)
    for lost in (0, 1, 2, 4, 12, 40, len(raw) // 3):
        part = raw[: len(raw) - lost]
        try:
            is_cut = read_header(part).is_cut
        except DataError:  # not even its header can be read
            is_cut = True
        assert is_cut == (not can_be_read(part)), lost


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_what_a_camera_writes_behind_an_image_is_no_damage(form):
    assert not read_header(encoded(form) + b"trailer" * 5000).is_cut


def test_damaged_images_among_those_looked_at_are_counted_with_an_example(tmp_path):
    paths = [tmp_path / f"{n:02}.png" for n in range(30)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded("PNG", number))
    for path in (paths[20], paths[25]):
        path.write_bytes(path.read_bytes()[:300])
    notes = notes_on("image", in_one_mode([look_at(images_of(paths), seed=0)]))
    assert len(notes) == 1
    assert "2 of 30 images end too early" in notes[0]
    assert "20.png" in notes[0]
    assert "on_error" in notes[0]


@pytest.fixture
def told(tmp_path):
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "A1.png").write_bytes(encoded("PNG"))

    def tell(name):
        column = images_of([tmp_path / name])
        error = missing_file(column, lambda row: f"row {row + 1} of d.csv", tmp_path)
        return "" if error is None else str(error)

    return tell


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("im\\A1.png", "'im/A1.png' is there, without backslashes"),
        (" im/A1.png", "'im/A1.png' is there"),
        ("im/A1.PNG", "'A1.png' is there"),
        ("im/A1", "'A1.png' is there"),
        ("A1.png", "it lies in 'im': folder: im"),
        ("https://example.org/A1.png", "nothing is fetched from the web"),
        ("file:///im/A1.png", "write paths without file://"),
        ("other.png", "names are relative to the folder"),
        ("", "row 1 of d.csv names no file: its cell is empty"),
        ("im", "where an image is needed"),
    ],
)
def test_a_name_of_no_file_leads_to_the_one_that_is_meant(told, name, hint):
    assert hint in told(name)


def test_a_name_of_a_file_is_not_told(told):
    assert told("im/A1.png") == ""


def test_images_of_different_sizes_are_named(small_config, tmp_path):
    from finetune.train.build import build_parts

    for number in range(12):
        path = tmp_path / "im" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 9 if number == 11 else 8
        Image.fromarray(np.full((8, side, 3), number * 9, np.uint8)).save(path)
    config = small_config(
        model={"layers": [{"type": "Flatten"}, {"type": "Linear", "out_features": "classes"}]},
        data={"source": {"type": "imagefolder", "path": str(tmp_path / "im")}},
        task={"type": "classification"},
    )
    with pytest.raises(
        DataError, match=r"\(3, 8, 8\) and \(3, 8, 9\), in '.*00.png' and '.*11.png'"
    ):
        build_parts(config)
