"""Look at image headers of a column: decide on colour or grey, and note what is converted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from finetune.counting import Counting
from finetune.data.images import Images
from finetune.data.media.decoding import Header
from finetune.data.media.pixels import Mode, PixelRules
from finetune.data.table import Table
from finetune.errors import DataError

MOST_LOOKED_AT = 2000
"""Most headers read per column: opening a file takes some 0.1 ms, and more over a network."""


@dataclass(frozen=True, slots=True)
class Looked:
    """A column of images, with the headers of all or some of them by position."""

    images: Images
    headers: Mapping[int, Header]


def read_alike(
    tables: Mapping[str, Table], seed: int, *, skips: bool = False
) -> tuple[dict[str, Table], list[str]]:
    """Return the tables of all parts with each image column in one colour mode, and notes.

    Args:
        tables: The columns in use by part, the training part first.
        seed: Seed for drawing images whose headers are read, if there are many.
        skips: Whether images whose header cannot be read are passed over.

    Raises:
        DataError: an image is missing, or a file is no image. The message names it.
    """
    columns = {part: dict(table.columns) for part, table in tables.items()}
    notes: list[str] = []
    # The mode is one for all parts: a network takes images of one kind.
    for name in next(iter(columns.values())):
        values = {part: of[name] for part, of in columns.items()}
        found = {part: column for part, column in values.items() if isinstance(column, Images)}
        if found and any(column.mode == "mask" for column in found.values()):
            # One that cannot be read is told where masks are encoded, with its row.
            looks = [look_at(column, seed, skips=True) for column in found.values()]
            notes += _on_palettes(name, looks)
        elif found:
            alike = in_one_mode([look_at(column, seed, skips=skips) for column in found.values()])
            notes += notes_on(name, alike)
            for part, looked in zip(found, alike, strict=True):
                columns[part][name] = looked.images
    return {part: replace(table, columns=columns[part]) for part, table in tables.items()}, notes


def _on_palettes(column: str, parts: Sequence[Looked]) -> list[str]:
    """Return a note on masks whose palette has another colour for a number than others; or nothing.

    Programs that shrink files drop colours that an image lacks, and so number the others anew.
    """
    found: dict[tuple[bytes, ...], list[str]] = {}
    for part in parts:
        for row, header in part.headers.items():
            if header.palette:
                found.setdefault(_colours(header.palette), []).append(part.images.name(row))
    if not found:
        return []
    usual = max(found, key=lambda colours: len(found[colours]))
    # One that ends earlier lacks colours, and has the same numbers for those that it has.
    others = {c: names for c, names in found.items() if _differ(c, usual)}
    if not others:
        return []
    count = sum(map(len, others.values()))
    colours, names = next(iter(others.items()))
    place = _differ(colours, usual)[0]
    return [
        f"column {column!r}: {count:,} of {sum(map(len, found.values())):,} palettes of masks have "
        f"other colours than that of {found[usual][0]!r}, such as {names[0]!r}: number {place} is "
        f"#{colours[place].hex()} there, and #{usual[place].hex()}; the number of a pixel is its "
        "class, whatever its colour"
    ]


def _differ(one: Sequence[bytes], other: Sequence[bytes]) -> list[int]:
    """Return the numbers that have another colour in two palettes, of those that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return [number for number, (here, there) in pairs if here != there]


def _colours(palette: bytes) -> tuple[bytes, ...]:
    """Return the colours of a palette, without black ones behind the last other one."""
    # Palettes are filled up with black.
    whole = palette.rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 3)
    return tuple(whole[at : at + 3] for at in range(0, len(whole), 3))


def notes_on_new(columns: Mapping[str, object]) -> list[str]:
    """Return notes on the images that a trained network is given.

    Raises:
        DataError: an image is missing, or a file is no image. The message names it.
    """
    found = {name: column for name, column in columns.items() if isinstance(column, Images)}
    looked = {name: [look_at(images, seed=0)] for name, images in found.items()}
    return [note for name in looked for note in notes_on(name, looked[name], is_trained=True)]


def look_at(images: Images, seed: int, *, skips: bool = False) -> Looked:
    """Return a column with its headers; of many images only `MOST_LOOKED_AT`, drawn by `seed`.

    Args:
        images: The column.
        seed: Seed of the draw.
        skips: Whether images whose header cannot be read are passed over.

    Raises:
        DataError: an image is missing, or a file is no image. The message names it.
    """
    chosen: Sequence[int] = range(len(images))
    if len(images) > MOST_LOOKED_AT:
        # At random: the first images of a folder are often all of one class or one source.
        chosen = sorted(Random(seed).sample(chosen, MOST_LOOKED_AT))
    headers = {}
    counting = Counting("reading headers of images", "images")
    for done, index in enumerate(chosen):
        counting.at(done, done / len(chosen))
        try:
            headers[index] = images.header(index)
        except DataError:
            if not skips:
                raise
    return Looked(images, headers)


def in_one_mode(parts: Sequence[Looked]) -> list[Looked]:
    """Return the same column of all parts in one colour mode.

    A mode that the config names is kept. Otherwise it is RGB if any image of any part has colour,
    unless the config names a mode for the first part, which then holds for all.
    """
    headers = [header for part in parts for header in part.headers.values()]
    has_colour = any(header.is_colour for header in headers)
    found: Mode = "RGB" if has_colour else "L"
    mode = found if parts[0].images.is_found else parts[0].images.mode
    # Not every header was read: an image in colour may still come, and must not lose it unnoticed.
    is_guess = mode == "L" and len(headers) < sum(len(part.images) for part in parts)
    return [
        replace(part, images=replace(part.images, mode=mode, refuses_colour=is_guess))
        if part.images.is_found
        else part
        for part in parts
    ]


def notes_on(column: str, parts: Sequence[Looked], *, is_trained: bool = False) -> list[str]:
    """Return notes on how many images of a column are converted, one line per kind.

    Args:
        column: Name of the column.
        parts: The images of each part.
        is_trained: Whether a trained network fixes the mode; then no config key is suggested.
    """
    total = sum(len(part.images) for part in parts)
    every = [
        (header, part.images.name(index))
        for part in parts
        for index, header in part.headers.items()
    ]
    among = f"{total:,}" if len(every) == total else f"{len(every):,} looked at of {total:,}"
    images, notes = parts[0].images, []
    for is_so, said in _kinds(images, is_trained=is_trained):
        names = [name for header, name in every if is_so(header)]
        if names:
            example = f", such as {names[0]!r}"
            notes.append(f"column {column!r}: {len(names):,} of {among} images {said}{example}")
    # A key without effect is told, though not refused: headers of some images were not read.
    if images.rules.range is not None and not any(header.is_deep for header, _ in every):
        notes.append(f"column {column!r}: range changes no image, all {among} images have 8 bits")
    return notes


def _kinds(images: Images, *, is_trained: bool) -> list[tuple[Callable[[Header], bool], str]]:
    """Return the kinds of image that need a note, each with what is done to it."""
    colour = "#{:02x}{:02x}{:02x}".format(*images.rules.background)
    kinds: list[tuple[Callable[[Header], bool], str]] = [
        (lambda h: h.is_deep, f"have more than 8 bits, brought to 8 {_by(images.rules)}"),
        (lambda h: h.is_wide, "have 16 bits for each colour, the upper 8 are read"),
        (lambda h: h.is_transparent, f"are transparent, laid on {colour} (key: background)"),
        (lambda h: h.is_turned, "are turned upright, as their EXIF data say"),
        (lambda h: h.has_frames, "have several frames or pages, the first one is read"),
        (lambda h: h.mode == "CMYK", "are CMYK, read as RGB without their colour profile"),
    ]
    if not is_trained:  # which stops at such an image itself, and says so
        kinds.append((lambda h: h.is_cut, "end too early and cannot be read (key: on_error)"))
    if images.mode == "L":
        return [(lambda h: h.is_colour, "have colour, read as grey"), *kinds]
    advice = "" if is_trained else " (channels: grey reads all as grey)"
    return [(lambda h: not h.is_colour, f"are grey, read as RGB{advice}"), *kinds]


def _by(rules: PixelRules) -> str:
    """Return the range by which deep images are scaled, as text."""
    if rules.range is None:
        return "by the range of their type (key: range)"
    low, high = rules.range
    return f"by range: [{low:g}, {high:g}]"
