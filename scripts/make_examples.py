"""Make the data of example configs, which no package brings: recordings, a table, and notes.

`configs/data/tones` gets recordings of four kinds of sound, `configs/data/throws.csv` measured
throws of a ball, `configs/data/notes.jsonl` sentences with persons, places and companies. All are
drawn by a fixed seed, so that every machine makes the same. Usage:

    python scripts/make_examples.py [FOLDER]

Letters: T numbers of a recording.
"""

import csv
import json
import random
import sys
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float64]

RATE, SECONDS, EACH = 8000, 0.5, 40
THROWS = 400
GRAVITY = 9.81
"""Metres per second squared."""
FOLDER = Path(__file__).parents[1] / "configs" / "data"


def make_tones(folder: Path) -> None:
    """Write 40 recordings of each kind of sound, in a subfolder by its name."""
    draw = np.random.default_rng(0)
    for kind in ("sine", "square", "sawtooth", "noise"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(EACH):
            sound = draw.uniform(0.2, 0.8) * _sound(kind, draw)
            with wave.open(str(folder / kind / f"{number:02}.wav"), "wb") as file:
                file.setparams((1, 2, RATE, len(sound), "NONE", "not compressed"))
                file.writeframes((sound * 32767).astype("<i2").tobytes())


def _sound(kind: str, draw: np.random.Generator) -> Wave:
    """Return one sound `(T,)` of random pitch between -1 and 1, with a little noise."""
    time = np.arange(round(RATE * SECONDS)) / RATE
    turns = draw.uniform(150, 900) * time + draw.uniform()
    noise: Wave = draw.uniform(-1, 1, len(time))
    waves: dict[str, Wave] = {
        "sine": np.sin(2 * np.pi * turns),
        "square": np.sign(np.sin(2 * np.pi * turns)),
        "sawtooth": 2 * (turns % 1) - 1,
        "noise": noise,
    }
    return 0.95 * waves[kind] + 0.05 * noise


def make_throws(path: Path) -> None:
    """Write throws of a ball: speed and angle, and how far, how high and how long it flew.

    Without air, a ball thrown at speed `v` and angle `a` flies `v^2 sin(2a) / g` far and
    `(v sin a)^2 / 2g` high, in `2 v sin a / g` seconds. Each is measured to a few percent.
    """
    draw = np.random.default_rng(0)
    speed, angle = draw.uniform(3, 10, THROWS), draw.uniform(10, 80, THROWS)
    rise = speed * np.sin(np.radians(angle))
    exact = {
        "distance_m": speed**2 * np.sin(np.radians(2 * angle)) / GRAVITY,
        "height_m": rise**2 / (2 * GRAVITY),
        "seconds": 2 * rise / GRAVITY,
    }
    measured = {name: values * draw.normal(1, 0.03, THROWS) for name, values in exact.items()}
    columns = {"speed": speed, "angle": angle, **measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(
            [f"{value:.3f}" for value in row] for row in zip(*columns.values(), strict=True)
        )


NOTES = 400
SENTENCES = (
    "{per} moved from {loc} to {loc} last year",
    "shares of {org} fell after {per} left the company",
    "{org} opens a new factory in {loc}",
    "the mayor of {loc} met {per} on Monday",
    "{per} and {per} are married",
    "trains between {loc} and {loc} are late again",
    "our neighbour {per} signed a contract with {org}",
    "it rained all day in {loc}",
    "nothing new today",
    "{org} hired {per} as an engineer",
    "the road to {loc} is closed",
    "profits of {org} have doubled",
)
SYLLABLES = (
    *("ba", "den", "fi", "gor", "hal", "ju", "kem", "lo", "mir", "nu"),
    *("pel", "ras", "so", "tun", "vel", "wi", "xan", "yor", "zel"),
)


def make_notes(path: Path) -> None:
    """Write sentences as words with tags, and the kinds of names that each holds.

    Only what stands around a name tells what it names.

    Names are drawn of one and the same set of syllables, so nearly all of them are new to a network
    that was trained on other sentences.
    """
    draw = random.Random(0)
    rows = [json.dumps(_note(draw.choice(SENTENCES), draw)) for _ in range(NOTES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _note(sentence: str, draw: random.Random) -> dict[str, str | list[str]]:
    """Return a sentence with names: as words with tags, and as a text with the kinds of names."""
    words, tags = list[str](), list[str]()
    for word in sentence.split():
        if not word.startswith("{"):
            words.append(word)
            tags.append("O")
            continue
        size, kind = draw.choice((1, 1, 2)), word.strip("{}")
        words += ["".join(draw.choices(SYLLABLES, k=3)).title() for _ in range(size)]
        tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
    kinds = sorted({tag[2:] for tag in tags if tag != "O"})
    return {"words": words, "tags": tags, "text": " ".join(words), "kinds": kinds}


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    make_tones(place / "tones")
    make_throws(place / "throws.csv")
    make_notes(place / "notes.jsonl")
    print(f"made tones, throws.csv and notes.jsonl in {place}")
