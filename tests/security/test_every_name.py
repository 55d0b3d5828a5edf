"""A stranger's folder in which every name that finetune uses is taken by something else.

The names are read from the source, so a new one is tried as soon as it is written there.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "finetune").rglob("*.py"))
FILE = re.compile(r"\.?[\w-]+\.(yaml|json|jsonl|html|safetensors|lock|tmp|txt|svg|png|csv)")
WORK = "work of a year"
SECRET = "-----BEGIN PRIVATE KEY-----\n"
VERBS = {
    "train": ("train", "honest.yaml"),
    "train on": ("train", "honest.yaml", "-o", "train.epochs=3"),
    "fresh": ("train", "honest.yaml", "--fresh"),
    "resume": ("train", "honest.yaml", "--resume", "runs/honest", "--run", "mine"),
    "plan": ("plan", "honest.yaml"),
    "eval": ("eval", "runs/honest"),
    "predict": ("predict", "runs/honest", "points.csv"),
    "doctor": ("doctor", "runs/honest"),
    "cache ls": ("cache", "ls"),
    "cache verify": ("cache", "verify"),
    "cache clear": ("cache", "clear"),
    "tensorboard": ("tensorboard", "runs"),
}
MEETING_A_RUN = ("train on", "resume", "eval", "doctor", "fresh")


def constants():
    """Yield every string that the source of finetune holds."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def file_names():
    """Return the names of files that finetune uses, with those of their temporary files."""
    named = {text for text in constants() if FILE.fullmatch(text)}
    return sorted({*named, *(f".{name}.tmp" for name in named), *(f"{name}.tmp" for name in named)})


STEP = "checkpoints/step-00000006"
FOLDERS = ["checkpoints", "tensorboard", STEP, *(f"checkpoints/{beginning}step-00000009"
           for beginning in ("", ".tmp-", ".old-", ".gone-"))]  # fmt: skip
PLACES = [*file_names(), *(f"{STEP}/{name}" for name in file_names() if name[0] != "."),
          "tensorboard/x", "tensorboard/events.out.tfevents.1.x", *FOLDERS]  # fmt: skip


@pytest.mark.slow
def test_the_source_is_read_for_names():
    assert {".run.lock", "config.yaml", "metrics.jsonl", "MANIFEST.json", "meta.json"} <= set(
        file_names()
    )
    assert len(file_names()) > 30


def take(path, kind, outside):
    """Put something of this kind by a name, in the place of what is there."""
    if path.parent.is_symlink() or not path.parent.is_dir():
        return  # a folder above is taken already
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    PLANTING[kind](path, outside)


def plant_folder(path, outside):
    path.mkdir()
    (path / "thesis.tex").write_text(WORK)


PLANTING = {
    "link to a file": lambda path, outside: path.symlink_to(outside / "id_ed25519"),
    "link to a folder": lambda path, outside: path.symlink_to(outside / "folder"),
    "dangling link": lambda path, outside: path.symlink_to(outside / "new"),
    "hard link": lambda path, outside: os.link(outside / "id_ed25519", path),
    "pipe": lambda path, outside: os.mkfifo(path),
    "folder": plant_folder,
    "file": lambda path, outside: path.write_text(WORK),
}
KINDS = list(PLANTING)


class Watch:
    """Notes every file below a folder that Python opens, or looks for in a folder."""

    def __init__(self):
        self.folder = None
        self.seen = []
        sys.addaudithook(self)  # it cannot be taken away again

    def __call__(self, event, arguments):
        if self.folder is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if flags & os.O_NOFOLLOW and Path(path).is_symlink():
            return
        if Path(os.path.realpath(path)).is_relative_to(self.folder):
            self.seen.append(str(path))


@pytest.fixture(scope="module")
def watch():
    watch = Watch()
    yield watch
    watch.folder = None


@pytest.fixture
def outside(attack):
    """A folder of somebody else, beside the place where the verbs run."""
    folder = attack.folder / "outside"
    (folder / "folder").mkdir(parents=True)
    (folder / "id_ed25519").write_text(SECRET)
    (folder / "folder" / "step-00000006").mkdir()
    (folder / "folder" / "events.out.tfevents.1.x").write_text("curves of somebody else")
    return folder


@pytest.fixture
def cache(attack, monkeypatch):
    """A cache with one store in it."""
    from finetune.store.layout import RowSpec
    from finetune.store.store import Store

    root = attack.folder / "cache"
    monkeypatch.setenv("FINETUNE_CACHE", str(root))
    spec = {"out": RowSpec((2,), "float32")}
    Store.open(root, "k", spec, 4, memory_gb=0, disk_gb=1).close()
    return root


def strangers_work(folder):
    """Return how many works of a stranger lie below a folder; a run may only rename theirs."""
    return sum(path.read_text() == WORK for path in folder.rglob("thesis.tex"))


def try_all(attack, watch, outside, verbs=VERBS):
    """Run verbs over the folder; nothing outside may be opened, changed or copied."""
    before = attack.tree(outside)
    watch.folder = outside.resolve()
    for name, verb in verbs.items():
        watch.seen.clear()
        outcome = attack.harmless(*verb)
        assert watch.seen == [], (name, outcome)
        assert len(outcome.err) < 4000, name
    watch.folder = None
    assert attack.tree(outside) == before
    for path in attack.folder.rglob("*"):
        inside = not path.is_relative_to(outside) and path.lstat().st_nlink == 1
        if inside and not path.is_symlink() and path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """A test that gets as far as TensorBoard's own process has shown what it should."""
    monkeypatch.setattr(os, "execv", lambda *command: None)


GROUPS = {
    "all": PLACES,
    "not the folders": [name for name in PLACES if name not in FOLDERS],
    "what a verb reads last": [name for name in PLACES if "step-" in name or ".tmp" in name],
}


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(names, id=name, marks=[] if name == "all" else pytest.mark.slow)
        for name, names in GROUPS.items()
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_name_at_once(attack, planted, outside, cache, watch, kind, group):
    for name in group:
        take(planted / name, kind, outside)
    for name in ["lock", "seals", "rows-0", "meta.json", "verdicts"]:
        take(cache / "k" / name, kind, outside)
    for name in [".lock", ".new-1-k", ".old-1-k", "other"]:
        take(cache / name, kind, outside)
    before = strangers_work(attack.folder)
    try_all(attack, watch, outside)
    assert strangers_work(attack.folder) == before


def one_by_one(names, run):
    """Return groups of names: each that a run has, or is written by, alone, and all others at once.

    A name that ends a verb early would hide what the verb does to the names after it.
    """
    of_the_run = {path.relative_to(run).as_posix() for path in run.rglob("*")}

    def is_used(name):
        folder, _, last = name.rpartition("/")
        plain = last.removesuffix(".tmp")
        forms = {name, plain, plain.removeprefix(".")}
        return name in FOLDERS or any(
            f"{folder}/{form}".removeprefix("/") in of_the_run for form in forms
        )

    used = [name for name in names if is_used(name)]
    others = [name for name in names if name not in used]
    return [*([name] for name in used), *([others] if others else [])]


BATCHES = [PLACES[start : start + 12] for start in range(0, len(PLACES), 12)]


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES, ids=range(len(BATCHES)))
def test_every_name_alone(attack, planted, trained, outside, cache, watch, batch):
    """A link, and one other kind: over all names, every kind comes often."""
    for group in one_by_one(batch, trained / "runs" / "honest"):
        other = KINDS[1 + PLACES.index(group[0]) % (len(KINDS) - 1)]
        for kind in (KINDS[0], other):
            shutil.rmtree(planted)
            shutil.rmtree(attack.folder / "mine", ignore_errors=True)
            shutil.copytree(trained / "runs" / "honest", planted)
            for name in group:
                take(planted / name, kind, outside)
            before = strangers_work(planted)
            verbs = {verb: VERBS[verb] for verb in MEETING_A_RUN}
            try_all(attack, watch, outside, verbs)
            assert strangers_work(planted) == before, group


@pytest.mark.slow
def test_the_system_is_asked_for_nothing_outside(attack, planted, outside):
    """Whatever a library does in C shows in the calls to the system."""
    for name in GROUPS["what a verb reads last"]:
        take(planted / name, f"link to a {'folder' if name in FOLDERS else 'file'}", outside)
    before, log = attack.tree(outside), attack.folder / "calls.log"
    tracer = ["strace", "-f", "-y", "-e", "trace=%file", "-o", str(log)]
    for verb in ("train on", "resume", "eval"):
        command = [sys.executable, "-P", "-m", "finetune", *VERBS[verb]]
        is_traced = shutil.which("strace") is not None
        subprocess.run(
            [*(tracer if is_traced else ()), *command],
            cwd=attack.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=280,
            check=False,
        )
        calls = log.read_text(errors="replace").splitlines() if is_traced else []
        followed = [line for line in calls if f"<{outside}" in line]
        assert followed == []
    assert attack.tree(outside) == before
