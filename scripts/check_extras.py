"""Install each extra alone, and show that what it is for works and that what it lacks is told.

    python scripts/check_extras.py                # every extra, about fifteen minutes on two cores
    python scripts/check_extras.py vision serve   # these alone

The wheel is built from this checkout. Each extra gets an environment of its own with the packages
of `constraints.txt`; torch alone is shared, by links to the environment that runs this script,
which needs the extra `dev`. Every use in `USES` is then tried in each environment: that of the
extra itself must work, any other one must work or end in one line that names the extra it needs.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
import wave
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[1]
COLLECTIONS = frozenset({"bench", "demo", "dev", "docs"})
"""Extras that are made of others, or are for work on this project."""
NONE = "none"
"""Stands for an installation without an extra."""
TIMEOUT_S = 600
USES = {
    NONE: """
        finetune --version
        python -m finetune --help
        finetune init houses.csv
        finetune plan houses.yaml
        finetune train houses.yaml
        finetune predict runs/houses new.csv
        finetune eval runs/houses
    """,
    "text": "finetune train texts.yaml\nfinetune predict runs/texts new_texts.csv",
    "vision": """
        finetune init pictures
        finetune train pictures.yaml -o train.epochs=2
        finetune predict runs/pictures pictures/dark/0.png
        finetune plan timm.yaml
        finetune train boxes.yaml
    """,
    "data": "finetune train hub.yaml\nfinetune train iris.yaml",
    "audio": "finetune init sounds\nfinetune train sounds.yaml -o train.epochs=2",
    "export": "finetune export runs/houses --format onnx --out exported",
    "sweep": "finetune sweep sweep.yaml",
    "serve": "serve runs/houses",
    "sign": """
        finetune certify runs/houses --out houses.json --sign key.pem
        finetune certify --check houses.json --public-key key.pub
    """,
    "mlflow": "finetune train houses.yaml --run runs/mlflow -o tracking=[mlflow]",
    "wandb": "finetune train houses.yaml --run runs/wandb -o tracking=[wandb]",
}
"""Commands that show what an extra is for."""
_REST = """
task: {type: TASK}
optimizer: {type: AdamW, lr: 0.01}
train: {epochs: 2, batch_size: 8}
"""
_HEAD = "- {name: head, type: Linear, out_features: classes}"
CONFIGS = {
    "texts": f"""
model:
  layers:
    - {{name: encoder, type: transformers, path: bert, output: mean}}
    {_HEAD}
data:
  source: {{type: csv, path: texts.csv}}
  inputs: text
  target: label
  transforms: [{{type: tokenize, max_length: 8}}]
freeze: [encoder]{_REST.replace("TASK", "classification")}""",
    "timm": f"""
model:
  layers:
    - {{name: encoder, type: timm, architecture: resnet18, pretrained: false}}
    {_HEAD}
data: {{source: {{type: imagefolder, path: pictures}}}}
freeze: [encoder]{_REST.replace("TASK", "classification")}""",
    "boxes": f"""
model:
  layers:
    - {{name: network, type: torchvision, architecture: fasterrcnn_mobilenet_v3_large_320_fpn,
       output: boxes, pretrained: false, args: {{min_size: 64, max_size: 64}}}}
data:
  source: {{type: coco, path: boxes.json, folder: pictures}}
  target: objects
  split: {{validation: 0.2, test: 0.2}}
{_REST.replace("TASK", "detection, metrics: [map]")}""",
    "hub": f"""
model: {{layers: [{{name: head, type: Linear, out_features: classes}}]}}
data: {{source: {{type: huggingface, path: hub}}, inputs: x, target: label}}
{_REST.replace("TASK", "classification")}""",
    "iris": f"""
model: {{layers: [{{name: head, type: Linear, out_features: classes}}]}}
data: {{source: {{type: sklearn, name: iris}}, inputs: features, target: label}}
{_REST.replace("TASK", "classification")}""",
    "sweep": "extends: houses.yaml\nsweep: {trials: 2, search: {optimizer.lr: [0.01, 0.001]}}\n",
}


def main() -> None:
    """Check the extras that the command line names, or all."""
    known = [NONE, *single_extras()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"of {', '.join(known)}")
    wanted = parser.parse_args().extras or known
    if unknown := {*wanted} - {*known}:
        parser.error(f"no extra {', '.join(sorted(unknown))}")
    if untried := {*known} - {*USES}:
        sys.exit(f"USES has no use for {', '.join(sorted(untried))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, shared = _built(folder), folder / "shared"
        _link_torch(shared)
        _make_materials(folder / "materials")
        failures = [line for extra in wanted for line in _failures(extra, wheel, shared, folder)]
    sys.exit("\n".join(failures))


def single_extras() -> list[str]:
    """Return the extras that bring one thing each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [extra for extra in project["optional-dependencies"] if extra not in COLLECTIONS]


def _built(folder: Path) -> Path:
    """Return the wheel of this checkout, built from a copy that leaves nothing behind."""
    copy = folder / "copy"
    shutil.copytree(ROOT / "finetune", copy / "finetune")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*build, "--no-build-isolation", "-w", folder, copy], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _link_torch(shared: Path) -> None:
    """Fill a folder with links to torch and all that it requires."""
    shared.mkdir()
    wanted, seen = [Requirement("torch")], set[str]()
    while wanted:
        one = wanted.pop()
        found = metadata.distribution(one.name)
        for line in found.requires or ():
            asked = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *one.extras)]
            if str(asked) not in seen and (
                asked.marker is None or any(map(asked.marker.evaluate, environments))
            ):
                seen.add(str(asked))
                wanted.append(asked)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):  # several packages share a folder
                (shared / top).symlink_to(Path(str(found.locate_file(top))).resolve())


def _failures(extra: str, wheel: Path, shared: Path, folder: Path) -> list[str]:
    """Return what fails in an environment with one extra, after a line for each use."""
    print(f"== {extra}", flush=True)
    place = folder / extra
    _install(place, f"{wheel}[{extra}]" if extra != NONE else str(wheel), shared)
    work = place / "work"
    shutil.copytree(folder / "materials", work)
    failures = []
    # What the other uses go on from comes first.
    for use in (NONE, *(use for use in USES if use != NONE)):
        ended = _tried(use, place, work)
        is_right = ended.works if use in (NONE, extra) else ended.works or ended.names == use
        print(f"  {'ok' if is_right else 'WRONG':6} {use:7} {ended.said}", flush=True)
        if not is_right:
            failures.append(f"{extra}: {use}: {ended.said}")
    shutil.rmtree(place)
    return failures


def _install(place: Path, what: str, shared: Path) -> None:
    """Make an environment that sees the shared torch, and install the package in it."""
    subprocess.run([sys.executable, "-P", "-m", "venv", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    pip = [str(place / "bin" / "python"), "-P", "-m", "pip", "install", "--quiet", "--quiet"]
    constraints = ["--no-input", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *constraints, what], check=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the commands of a use ended.

    Args:
        works: Whether all of them did what they are for.
        names: The extra that the one line of a refusal names.
        said: What is worth showing.
    """

    works: bool
    names: str
    said: str


def _tried(use: str, place: Path, work: Path) -> Ended:
    """Run the commands of a use, up to the first that fails."""
    for line in USES[use].strip().splitlines():
        program, *arguments = shlex.split(line)
        if program == "serve":
            done = _served(place / "bin" / "finetune", arguments[0], work)
        else:
            command = [str(place / "bin" / program), *arguments]
            done = subprocess.run(
                command, cwd=work, env=_environment(), capture_output=True, text=True,
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        if done.returncode:
            return _refusal(line, done)
    return Ended(works=True, names="", said="works")


def _refusal(line: str, done: subprocess.CompletedProcess[str]) -> Ended:
    """Return how a command failed: in one line with a hint that names an extra, or otherwise."""
    *before, problem, hint = ["", "", *done.stderr.strip().splitlines()]
    _, _, rest = hint.partition("'finetune[")
    is_clear = done.returncode == 2 and hint.startswith("    ") and "Traceback" not in done.stderr
    if is_clear and rest and not any(one.startswith(" ") for one in before):
        return Ended(works=False, names=rest.partition("]")[0], said=f"{problem} {hint.strip()}")
    return Ended(works=False, names="", said=f"{line}: exit {done.returncode}\n{done.stderr}")


def _served(finetune: Path, run: str, work: Path) -> subprocess.CompletedProcess[str]:
    """Start a service, ask it for a prediction, and end it."""
    command = [str(finetune), "serve", run, "--port", "0"]
    told: list[str] = []
    with subprocess.Popen(
        command, cwd=work, env=_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            for said in process.stderr:
                told.append(said)
                if " on http://" in said:
                    _ask(said.rpartition(" on ")[2].strip())
                    process.terminate()
        finally:
            process.terminate()
    return subprocess.CompletedProcess(command, process.returncode, "", "".join(told))


def _ask(address: str) -> None:
    """Ask a service for the prediction of one house."""
    question = {"inputs": [{"area": 80, "year": 1960, "city": "Bonn"}]}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/predict", json.dumps(question).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "houses" in json.load(answer)["predictions"]


def _environment() -> dict[str, str]:
    """Return variables for a command: no other package path, no hub, a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "FINETUNE_CACHE": "cache"}


def _make_materials(folder: Path) -> None:
    """Write the data, configs and keys that the uses need."""
    folder.mkdir()
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text)
    _make_tables(folder)
    _make_pictures(folder)
    _make_sounds(folder / "sounds")
    _make_bert(folder / "bert")
    _make_keys(folder)
    from datasets import Dataset  # type: ignore[import-untyped]

    rows = {"x": [[n % 7 / 7, n % 2 / 2] for n in range(40)], "label": ["a", "b"] * 20}
    Dataset.from_dict(rows).save_to_disk(folder / "hub")


def _make_tables(folder: Path) -> None:
    """Write a table of houses with gaps, and one of texts."""
    draw = np.random.default_rng(0)
    houses = ["area,year,city,price"]
    for n in range(120):
        area, year = int(draw.integers(20, 200)), "" if n % 23 == 0 else 1950 + n % 70
        houses.append(f"{area},{year},{('Bonn', 'Kiel')[n % 2]},{area * 3000 + n % 2 * 90_000}")
    (folder / "houses.csv").write_text("\n".join(houses) + "\n")
    (folder / "new.csv").write_text("area,year,city\n80,,Bonn\n")
    texts = [f"the film was {('good', 'bad')[n % 2]},{('yes', 'no')[n % 2]}" for n in range(40)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    (folder / "new_texts.csv").write_text("text\na good film\n")


def _make_pictures(folder: Path) -> None:
    """Write images of two classes, and boxes for them."""
    draw = np.random.default_rng(0)
    images, boxes = [], []
    for n in range(40):
        name = f"{('dark', 'light')[n % 2]}/{n // 2}.png"
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(n % 2 * 150, n % 2 * 150 + 100, (40 + n, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / name)
        images.append({"id": n, "file_name": name, "width": 64, "height": 40 + n})
        boxes.append({"id": n, "image_id": n, "category_id": n % 2, "bbox": [4, 4, 30, 30],
                      "area": 900, "iscrowd": 0})  # fmt: skip
    kinds = [{"id": n, "name": name} for n, name in enumerate(("dark", "light"))]
    document = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "boxes.json").write_text(json.dumps(document))


def _make_sounds(folder: Path) -> None:
    """Write recordings of two pitches, at a rate that has to be changed."""
    for n in range(24):
        path = folder / ("low", "high")[n % 2] / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = np.sin(np.arange(8000) * (0.05 + 0.3 * (n % 2))) * 9000
        with contextlib.closing(wave.open(str(path), "wb")) as file:
            file.setparams((1, 2, 8000, len(sound), "NONE", "not compressed"))
            file.writeframes(sound.astype("<i2").tobytes())


def _make_bert(folder: Path) -> None:
    """Write a tiny network of texts with random weights, and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "the", "a", "film", "was", "good", "bad"]
    words = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(known), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


def _make_keys(folder: Path) -> None:
    """Write a pair of keys that sign a certificate."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pub").write_bytes(public)


if __name__ == "__main__":
    main()
