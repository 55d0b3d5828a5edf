"""Data of newcomers: mails, pictures of odd sizes, a table with gaps; each with a new sample."""

import numpy as np
from odd_folders import table
from PIL import Image

TEXTS = {
    "late": "the parcel came {} days late and nobody told us",
    "praise": "thank you for the quick help, order {} was lovely",
    "refund": "please give me back the money for order {}",
}


def texts(folder):
    rows = [[n, f'"{text.format(n)}"', label] for n in range(30) for label, text in TEXTS.items()]
    table(folder / "mails.csv", ["id", "message", "category"], rows)
    table(folder / "new.csv", ["message"], [["my parcel is a week late"]])
    return "mails.csv"


def images(folder):
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 150)):
        (folder / "pictures" / label).mkdir(parents=True)
        for n in range(20):
            shape = (20 + 7 * n, 90 - 3 * n, 3) if n % 3 else (30, 40 + n)
            pixels = draw.integers(low, low + 100, size=shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{n}.png")
    Image.new("RGB", (300, 40), (20, 10, 20)).save(folder / "new.jpg")
    return "pictures"


def numbers(folder):
    draw = np.random.default_rng(0)
    rows = []
    for n in range(200):
        area, city = int(draw.integers(20, 200)), ["Bonn", "Köln"][n % 2]
        shown, year = "?" if n % 17 == 0 else area, "" if n % 23 == 0 else 1950 + n % 70
        rows.append([f"h{n:04}", shown, year, city, round(area * 3000 + n % 2 * 90_000)])
    table(folder / "houses.csv", ["id", "area", "year", "city", "price"], rows)
    table(folder / "new.csv", ["area", "year", "city"], [[80, "", "Bonn"]])
    return "houses.csv"


MAKERS = {"texts": texts, "images": images, "numbers": numbers}
