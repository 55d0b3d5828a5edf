"""The configs that README and docs print, and what makes small data and networks for them."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from recipe_basics import draw, image_folder, picture, saved, table, text_network
from transformers import DistilBertConfig, DistilBertModel

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path for path in ROOT.glob("docs/**/*.md")}
PAGES |= {"README.md": ROOT / "README.md"}
_BLOCK = re.compile(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGS = {page: dict(_BLOCK.findall(path.read_text("utf-8"))) for page, path in PAGES.items()}


def texts(folder):
    rows = [{"message": f"parcel {n} came late", "category": "late"} for n in range(40)]
    rows += [{"message": f"thank you for help {n}", "category": "praise"} for n in range(40)]
    table(folder / "texts.csv", rows)
    return {"model.layers.0.path": text_network(folder / "network")}


def labels(folder):
    told = texts(folder)
    several = ["late", "praise", "late,praise", ""]
    rows = [{"message": f"parcel {n}", "category": several[n % 4]} for n in range(80)]
    table(folder / "texts.csv", rows)
    return told


def news(folder):
    for name in ("business", "sport"):
        (folder / "news" / name).mkdir(parents=True)
        for n in range(20):
            (folder / "news" / name / f"{n}.txt").write_text(f"{name} of day {n}")
    network = text_network(folder / "network")
    return {"data.source.path": folder / "news", "model.layers.0.path": network}


def pictures(folder):
    image_folder(folder / "pictures", ["cat", "dog"], each=16)
    return {"model.layers.0.pretrained": "false"}


def masks(folder):
    rows, random = [], draw()
    for n in range(16):
        picture(random).save(folder / f"{n}.jpg")
        numbers = random.integers(0, 3, (48, 64)).astype(np.uint8)
        Image.fromarray(numbers).save(folder / f"{n}.png")
        rows.append({"image": f"{n}.jpg", "mask": f"{n}.png"})
    table(folder / "pairs.csv", rows)
    return {"data.transforms.0.size": "[32, 32]", "train.epochs": 1}


def boxes(folder):
    (folder / "images").mkdir()
    random = draw()
    for n in range(10):
        picture(random).save(folder / "images" / f"{n}.jpg")
    one = {"bbox": [8, 8, 24, 24], "category_id": 1, "area": 576, "iscrowd": 0}
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(10)
        ],
        "annotations": [one | {"id": n, "image_id": n} for n in range(10)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    return {
        "model.layers.0.pretrained": "false",
        "model.layers.0.args": "{min_size: 64, max_size: 64}",
        "train.epochs": 1,
    }


def animals(folder):
    rows = [
        {"length": n % 7, "weight": n % 5 + 0.5, "species": "ab"[n % 2], "price": n % 9}
        for n in range(80)
    ]
    table(folder / "animals.csv", rows)
    return {}


def sentences(folder):
    lines = [{"words": ["Ann", "left", f"{n}"], "tags": ["B-person", "O", "O"]} for n in range(40)]
    (folder / "sentences.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"model.layers.0.path": text_network(folder / "network")}


def questions(folder):
    context = "In May Ann left Rome by train {}."
    rows = [
        {"question": "Who left?", "context": context.format(n), "answer": "Ann", "start": 7}
        for n in range(20)
    ]
    table(folder / "questions.csv", rows)
    return {"model.layers.0.path": text_network(folder / "network")}


def alike(folder):
    rows = [
        {"first": f"dog {n}", "second": f"{['cat', 'dog'][n % 2]} {n}", "score": n % 2 * 5}
        for n in range(40)
    ]
    table(folder / "pairs.csv", rows)
    return {"model.layers.0.path": text_network(folder / "network")}


def answers(folder):
    rows = [
        {"question": f"is {n} even", "answer": ["yes", "no"][n % 2], "label": "ab"[n % 3 == 0]}
        for n in range(40)
    ]
    table(folder / "pairs.csv", rows)
    return {"model.layers.0.path": text_network(folder / "network")}


def words(folder):
    rows = [{"word": f"word{n % 100}", "label": "ab"[n % 2]} for n in range(300)]
    table(folder / "words.csv", rows)
    return {}


def package(folder):
    (folder / "my_pkg").mkdir()
    (folder / "my_pkg" / "__init__.py").touch()
    (folder / "my_pkg" / "nets.py").write_text(
        "from torch import nn\n\n\n"
        "def make_net(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())\n"
    )
    return {}


def distilbert(folder):
    told = texts(folder)
    small = DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    return told | {"model.layers.0.path": saved(DistilBertModel(small), folder / "network")}


def nothing(folder):
    return {}


MAKERS = {
    **dict.fromkeys(["phases.yaml", "rates.yaml"], news),
    **dict.fromkeys(["masks.yaml"], masks),
    **dict.fromkeys(["boxes.yaml"], boxes),
    **dict.fromkeys(["tasks.yaml", "two_tasks.yaml"], animals),
    **dict.fromkeys(["tags.yaml"], sentences),
    **dict.fromkeys(["answers.yaml"], questions),
    **dict.fromkeys(["alike.yaml"], alike),
    **dict.fromkeys(["pair.yaml"], answers),
    **dict.fromkeys(["new_rows.yaml"], words),
    **dict.fromkeys(["own_code.yaml"], package),
    **dict.fromkeys(["labels.yaml"], labels),
    **dict.fromkeys(["from_trainer.yaml"], distilbert),
    **dict.fromkeys(["declared.yaml", "three_phases.yaml"], nothing),
    **dict.fromkeys(
        ["pretrained.yaml", "two_maps.yaml", "views.yaml", "from_keras.yaml", "from_fastai.yaml"],
        pictures,
    ),
}
"""What makes the data of a config; of those that are not here, `texts`."""
