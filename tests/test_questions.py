"""The page of questions: each link leads to a section, which holds what the answer names."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
ROWS = [
    line.strip("| ").split(" | ")
    for line in (DOCS / "questions.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| question")
]
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def sections(page):
    """Return the text of each section of a page by its anchor; without one, the whole page."""
    text = page.read_text(encoding="utf-8")
    # What looks like a heading in a block of code is a comment.
    plain = re.sub(r"^```.*?^```$", lambda one: one[0].replace("#", "%"), text, flags=re.M | re.S)
    found = list(HEADING.finditer(plain))
    parts = {"": text}
    for place, head in enumerate(found):
        ends = (one.start() for one in found[place + 1 :] if len(one[1]) <= len(head[1]))
        anchor = re.sub(r"[^\w\- ]", "", head[2].lower()).replace(" ", "-")
        parts[anchor] = text[head.start() : next(ends, len(text))]
    return parts


def test_thirty_were_asked_in_public():
    assert sum(bool(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row[-1])) for row in ROWS) >= 30
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_section_behind_each_link_holds_what_the_answer_names(row):
    answer = row[1]
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", answer)
    assert links
    text = " ".join(sections(DOCS / page)[anchor] for page, anchor in links)
    named = {word for code in re.findall(r"`([^`]+)`", answer) for word in words_of(code)}
    assert [word for word in sorted(named) if word not in words_of(text)] == []


def words_of(code):
    """Return the words of the config or of a command; capitals stand for what a reader fills in."""
    return set(re.findall(r"(?<![\w*])[a-z][a-z_]{2,}", code))
