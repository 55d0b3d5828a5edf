"""The configs of docs/start, each trained on small data, from file to prediction."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGES = (Path(__file__).parents[2] / "docs" / "start").glob("*.md")
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)
STARTS = dict(re.findall(r"^```yaml\n# (\w+)\.yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def texts(folder):
    words = {"late": "the parcel came late", "praise": "thank you for the quick help"}
    rows = [f"{n},{words[label]} {n},{label}" for n in range(40) for label in words]
    (folder / "texts.csv").write_text("id,message,category\n" + "\n".join(rows) + "\n", "utf-8")
    (folder / "new.csv").write_text("message\nmy parcel is late\n", "utf-8")
    return "new.csv"


def images(folder):
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 150)):
        (folder / "pictures" / label).mkdir(parents=True)
        for n in range(20):
            pixels = draw.integers(low, low + 100, size=(40 + n, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{n}.png")
    return "pictures/dark/0.png"


def numbers(folder):
    draw = np.random.default_rng(0)
    rows = ["id,area,year,city,price"]
    for n in range(120):
        area, city = draw.integers(20, 200), ["Bonn", "Köln"][n % 2]
        shown = "?" if n % 17 == 0 else area
        rows.append(f"{n},{shown},{1950 + n % 70},{city},{area / 50 + n % 2:.2f}")
    (folder / "numbers.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (folder / "new.csv").write_text("area,year,city\n80,,Bonn\n", "utf-8")
    return "new.csv"


MAKERS = {"texts": texts, "images": images, "numbers": numbers}


def test_the_page_has_a_start_for_each_kind_of_data():
    assert set(MAKERS) <= set(STARTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_start_trains_and_predicts_as_it_stands_on_the_page(kind, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    asked = MAKERS[kind](tmp_path)
    (tmp_path / f"{kind}.yaml").write_text(STARTS[kind], "utf-8")
    call("train", f"{kind}.yaml", "--run", "run")
    [line] = [json.loads(line) for line in call("predict", "run", asked).out.splitlines()]
    wanted = {"texts": "late", "images": "dark"}.get(kind)
    assert line.get("label") == wanted
    if wanted is None:
        # 80 square metres in Bonn are 1.6.
        assert abs(line["values"][0] - 1.6) < 0.6
