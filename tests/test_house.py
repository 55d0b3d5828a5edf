"""The house holds: imports point down, some things are written in one place, nothing is unpickled.

Each rule reads the syntax tree of one file and returns what breaks it. Below the rules stands a
table of sources that break them, so that none can pass by being blind.
"""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import finetune.config
from finetune.config.base import Node
from finetune.config.descriptions import descriptions

ROOT = Path(__file__).parent.parent / "finetune"
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = {
    **dict.fromkeys(["redaction", "visible"], -1),
    **dict.fromkeys(["disk", "errors"], 0),
    **dict.fromkeys(["bits", "outfile", "patterns", "process", "randomness", "reading"], 1),
    **dict.fromkeys(["structure", "whole_folders"], 1),
    **dict.fromkeys(["streams", "terminal", "trust", "watchdog"], 1),
    **dict.fromkeys(["outfolder"], 2),
    **dict.fromkeys(["block_names", "config", "counting", "importing", "pictures", "preserved"], 2),
    **dict.fromkeys(["gathering", "module_calls", "which_rank"], 2),
    **dict.fromkeys(["models", "distributed", "optim", "store"], 3),
    **dict.fromkeys(["freezing", "data", "tracking"], 4),
    **dict.fromkeys(["activations", "runs", "tasks"], 5),
    **dict.fromkeys(["lints", "report"], 6),
    **dict.fromkeys(["train"], 7),
    **dict.fromkeys(["predict", "preview", "starting", "sweep"], 8),
    **dict.fromkeys(["export", "serve"], 9),
    **dict.fromkeys(["cli"], 10),
    **dict.fromkeys(["__main__"], 11),
}
CONFIG_MAY_IMPORT = sys.stdlib_module_names | {"pydantic", "pydantic_core", "yaml", "finetune"}
_PRINTERS = ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write")
CHECKPOINT_WRITER = "train/checkpoints/checkpoint.py"
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def part_of(path: str) -> str:
    """Return the room of a file, `path` being relative to the package."""
    return path.partition("/")[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of all that is imported, at the top, in functions or by name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from (f"{'.' * level}{module or ''}.{alias.name}" for alias in names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if dotted(node.func).endswith(
                ("import_module", "require", "__import__")
            ):
                yield name


def dotted(node: ast.AST) -> str:
    """Return `self.optimizer.step` for such an expression; unknown links are left empty."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case _:
            return ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """Return the constant given for a keyword, `...` for another expression, None if left out."""
    for item in call.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ...
    return None


def imports_point_down(tree: ast.Module, path: str) -> Iterator[str]:
    part = part_of(path)
    if part == "__init__":
        return
    if part not in LAYERS:
        yield f"{part} has no layer"
        return
    for name in imports(tree):
        if name.startswith("."):
            yield f"relative import of {name}"
        elif name.partition(".")[0] == "finetune":
            other = f"{name}.".split(".")[1] or "__init__"
            if other != part and LAYERS.get(other, 99) >= LAYERS[part]:
                yield f"imports {name}, which is not below it"


def config_is_light(tree: ast.Module, path: str) -> Iterator[str]:
    if part_of(path) in ("config", "errors"):
        heavy = {name for name in imports(tree) if name.split(".")[0] not in CONFIG_MAY_IMPORT}
        yield from (f"imports {name}" for name in heavy)


def only_apply_writes_requires_grad(tree: ast.Module, path: str) -> Iterator[str]:
    if path == "freezing/apply.py":
        return
    for name, call in calls(tree):
        if name.endswith(".requires_grad_"):
            yield "calls requires_grad_"
        if name == "setattr" and any(
            isinstance(arg, ast.Constant) and arg.value == "requires_grad" for arg in call.args
        ):
            yield "sets requires_grad"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="requires_grad", ctx=ast.Store()):
                yield "assigns requires_grad"


def only_the_stepper_steps_the_optimizer(tree: ast.Module, path: str) -> Iterator[str]:
    if path in ("train/stepper.py", "train/precision.py"):
        return
    for name, call in calls(tree):
        subjects = [name.removesuffix(".step"), *map(dotted, call.args)]
        if name.endswith(".step") and any("optim" in s.lower() for s in subjects):
            yield f"calls {name}"


def only_the_saver_saves_and_loads_checkpoints(tree: ast.Module, path: str) -> Iterator[str]:
    if path in ("train/saver.py", CHECKPOINT_WRITER):
        return
    for name, _ in calls(tree):
        if name.endswith(("save_checkpoint", "load_checkpoint")):
            yield f"calls {name}"


def only_checkpoint_and_export_write_tensors(tree: ast.Module, path: str) -> Iterator[str]:
    if path == "export.py" or path.startswith("export/"):
        return
    for name, _ in calls(tree):
        writes_safetensors = name.endswith(("save_file", "safetensors.torch.save"))
        if name == "torch.save" or (writes_safetensors and path != CHECKPOINT_WRITER):
            yield f"calls {name}"


def only_distributed_imports_torch_distributed(tree: ast.Module, path: str) -> Iterator[str]:
    if path == "distributed.py":
        return
    names = [*imports(tree), *(dotted(node) for node in ast.walk(tree))]
    if any(f"{name}.".startswith("torch.distributed.") for name in names):
        yield "uses torch.distributed"


def nothing_is_unpickled(tree: ast.Module, path: str) -> Iterator[str]:
    for name in imports(tree):
        # torch tells of a foreign file by this error; it unpickles nothing by itself.
        if name.split(".")[0] in UNPICKLERS and name != "pickle.UnpicklingError":
            yield f"imports {name}"
    for name, call in calls(tree):
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            yield "calls torch.load without weights_only=True"
        if keyword(call, "allow_pickle") not in (None, False):
            yield f"calls {name} with allow_pickle"


def nothing_read_is_run(tree: ast.Module, path: str) -> Iterator[str]:
    for name, call in calls(tree):
        if name in ("eval", "exec", "os.system"):
            yield f"calls {name}"
        if keyword(call, "trust_remote_code") not in (None, False):
            yield f"calls {name} with trust_remote_code"
        if keyword(call, "shell") not in (None, False):
            yield f"calls {name} with shell"


def people_are_shown_visible_text(tree: ast.Module, path: str) -> Iterator[str]:
    if path == "visible.py":
        return
    for name, _ in calls(tree):
        # the watchdog prints words of its own, in a process that is stuck
        if name in _PRINTERS and path != "watchdog.py":
            yield f"calls {name}, not tell of finetune.visible"
        if name == "rich.console.Console":
            yield "makes a console that is no Terminal"
    if path != "terminal.py" and "rich.console.Console" in imports(tree):
        yield "imports rich's Console"


def yaml_is_read_by_our_own_loader(tree: ast.Module, path: str) -> Iterator[str]:
    theirs = {"Loader", "FullLoader", "UnsafeLoader", "CLoader"}
    for name, call in calls(tree):
        if name in ("yaml.unsafe_load", "yaml.full_load", "yaml.safe_load"):
            yield f"calls {name}"
        if name in ("yaml.load", "yaml.load_all"):
            given = [*call.args[1:], *(item.value for item in call.keywords)]
            loader = dotted(given[0]) if given else "yaml.Loader"
            if loader.startswith("yaml.") or loader in theirs:
                yield f"calls {name} with a loader that is not ours"


_ON_FILES = {
    *("unlink", "rmtree", "rename", "renames", "write_text", "write_bytes", "read_text"),
    *("read_bytes", "copyfile", "copytree", "copy2", "move", "mkdir", "makedirs", "rmdir"),
    *("symlink_to", "hardlink_to", "link", "symlink", "touch", "mkstemp", "mkdtemp"),
    *("TemporaryDirectory", "NamedTemporaryFile", "removedirs"),
}


def only_disk_touches_files_of_runs_and_stores(tree: ast.Module, path: str) -> Iterator[str]:
    if part_of(path) not in ("runs", "store", "tracking", "train"):
        return
    for name, call in calls(tree):
        owner, _, verb = name.rpartition(".")
        is_path_replace = verb == "replace" and len(call.args) == 1 and not call.keywords
        # a parameter store and the prefixes of a run are opened by methods of that name
        is_open = verb == "open" and owner not in ("Store", "self.cache")
        is_remove = name in ("os.remove", "os.truncate", "os.replace")
        if owner != "disk" and (verb in _ON_FILES or is_path_replace or is_open or is_remove):
            yield f"calls {name}"


def it_says_what_it_is_for(tree: ast.Module, path: str) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "has no docstring"


Rule = Callable[[ast.Module, str], Iterator[str]]
RULES: list[Rule] = [
    imports_point_down,
    config_is_light,
    only_apply_writes_requires_grad,
    only_the_stepper_steps_the_optimizer,
    only_the_saver_saves_and_loads_checkpoints,
    only_checkpoint_and_export_write_tensors,
    only_distributed_imports_torch_distributed,
    nothing_is_unpickled,
    nothing_read_is_run,
    people_are_shown_visible_text,
    yaml_is_read_by_our_own_loader,
    only_disk_touches_files_of_runs_and_stores,
    it_says_what_it_is_for,
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_house_rules_hold(path):
    tree, place = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
    assert [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(tree, place)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (imports_point_down, "data/table.py", "import finetune.train.loop"),
        (imports_point_down, "data/table.py", "from finetune.train.loop import Trainer"),
        (imports_point_down, "data/table.py", "from finetune import train"),
        (imports_point_down, "data/table.py", "from finetune import build_trainer"),
        (imports_point_down, "data/table.py", "import finetune"),
        (imports_point_down, "data/table.py", "def f():\n    from finetune.cli import main"),
        (imports_point_down, "data/table.py", "importlib.import_module('finetune.train')"),
        (imports_point_down, "data/table.py", "from finetune.freezing.select import select"),
        (imports_point_down, "data/table.py", "from .table import Table"),
        (imports_point_down, "importing.py", "from finetune.config.base import Node"),
        (imports_point_down, "attic.py", "x = 1"),
        (config_is_light, "config/run.py", "import torch"),
        (config_is_light, "config/run.py", "def f():\n    from numpy import array"),
        (config_is_light, "errors.py", "import torch.nn"),
        (only_apply_writes_requires_grad, "train/loop.py", "p.requires_grad_(False)"),
        (only_apply_writes_requires_grad, "train/loop.py", "p.requires_grad = False"),
        (only_apply_writes_requires_grad, "train/loop.py", "p.requires_grad: bool = False"),
        (only_apply_writes_requires_grad, "train/loop.py", "a, p.requires_grad = 1, False"),
        (only_apply_writes_requires_grad, "train/loop.py", "setattr(p, 'requires_grad', False)"),
        (only_the_stepper_steps_the_optimizer, "predict.py", "optimizer.step()"),
        (only_the_stepper_steps_the_optimizer, "predict.py", "self.optimizer.step(closure)"),
        (only_the_stepper_steps_the_optimizer, "predict.py", "scaler.step(self.optimizer)"),
        (only_the_stepper_steps_the_optimizer, "train/loop.py", "self.optimizer.step()"),
        (only_the_saver_saves_and_loads_checkpoints, "train/loop.py", "save_checkpoint(x)"),
        (only_the_saver_saves_and_loads_checkpoints, "predict.py", "checkpoint.load_checkpoint(x)"),
        (only_checkpoint_and_export_write_tensors, "predict.py", "save_file(tensors, path)"),
        (only_checkpoint_and_export_write_tensors, "predict.py", "st.save_file(tensors, path)"),
        (
            only_checkpoint_and_export_write_tensors,
            CHECKPOINT_WRITER,
            "torch.save(x, path)",
        ),
        (only_distributed_imports_torch_distributed, "train/loop.py", "import torch.distributed"),
        (only_distributed_imports_torch_distributed, "cli/a.py", "from torch import distributed"),
        (only_distributed_imports_torch_distributed, "cli/a.py", "torch.distributed.barrier()"),
        (nothing_is_unpickled, "data/sources/files.py", "import pickle"),
        (nothing_is_unpickled, "data/sources/files.py", "from joblib import load"),
        (nothing_is_unpickled, "data/sources/files.py", "torch.load(path)"),
        (nothing_is_unpickled, "data/sources/files.py", "torch.load(path, weights_only=False)"),
        (nothing_is_unpickled, "data/sources/files.py", "torch.load(path, weights_only=flag)"),
        (nothing_is_unpickled, "data/sources/files.py", "np.load(path, allow_pickle=True)"),
        (nothing_read_is_run, "data/sources/files.py", "eval(text)"),
        (nothing_read_is_run, "data/sources/files.py", "exec(text)"),
        (nothing_read_is_run, "data/sources/files.py", "load(path, trust_remote_code=True)"),
        (nothing_read_is_run, "data/sources/files.py", "subprocess.run(text, shell=True)"),
        (yaml_is_read_by_our_own_loader, "config/loader.py", "yaml.load(text)"),
        (yaml_is_read_by_our_own_loader, "config/loader.py", "yaml.load(text, yaml.Loader)"),
        (yaml_is_read_by_our_own_loader, "config/loader.py", "yaml.load(s, Loader=UnsafeLoader)"),
        (yaml_is_read_by_our_own_loader, "config/loader.py", "yaml.safe_load(text)"),
        (people_are_shown_visible_text, "cli/a.py", "print(label)"),
        (people_are_shown_visible_text, "cli/a.py", "sys.stderr.write(label)"),
        (people_are_shown_visible_text, "cli/a.py", "typer.echo(label)"),
        (people_are_shown_visible_text, "cli/a.py", "from rich.console import Console"),
        (people_are_shown_visible_text, "cli/a.py", "rich.console.Console()"),
        (only_disk_touches_files_of_runs_and_stores, "runs/kept.py", "path.open('rb')"),
        (only_disk_touches_files_of_runs_and_stores, "runs/kept.py", "open(path)"),
        (only_disk_touches_files_of_runs_and_stores, "runs/kept.py", "os.open(path, 0)"),
        (only_disk_touches_files_of_runs_and_stores, "store/directory.py", "shutil.rmtree(path)"),
        (only_disk_touches_files_of_runs_and_stores, "store/directory.py", "aside.replace(path)"),
        (only_disk_touches_files_of_runs_and_stores, "tracking/json_lines.py", "p.read_bytes()"),
        (it_says_what_it_is_for, "data/sources/files.py", "x = 1"),
    ],
)
def test_a_rule_sees_what_breaks_it(rule, path, source):
    assert list(rule(ast.parse(source), path)) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train/wire.py", "from finetune.freezing.plan import Plan"),
        ("train/wire.py", "from finetune.train.loop import Trainer"),
        ("cli/train.py", "def f():\n    from finetune.train.wire import build_trainer"),
        ("__init__.py", "from finetune.train.wire import build_trainer"),
        ("config/run.py", "from pydantic import BaseModel\nimport yaml, re"),
        ("freezing/apply.py", "p.requires_grad_(False)"),
        ("freezing/select.py", "frozen = not p.requires_grad"),
        ("train/stepper.py", "self.precision.step(self.optimizer)"),
        ("train/loop.py", "self.progress.step += 1"),
        ("cli/train.py", "progress.step(3)"),
        (CHECKPOINT_WRITER, "save_file(tensors, path)"),
        ("runs/folder.py", "disk.rename(aside, path)\ntext.replace('a', 'b')"),
        ("predict.py", "path.read_text()"),
        ("distributed.py", "import torch.distributed"),
        ("models/weights.py", "torch.load(path, weights_only=True)"),
        ("data/sources/files.py", "np.load(path, allow_pickle=False)"),
        ("train/loop.py", "self.model.eval()"),
        ("models/weights.py", "from pickle import UnpicklingError"),
        ("config/loader.py", "yaml.load(text, Loader=StrictLoader)"),
    ],
)
def test_the_rules_leave_alone_what_is_allowed(path, source):
    tree = ast.parse(f'"""Text that names torch.load(path) and requires_grad_."""\n{source}')
    assert [fault for rule in RULES for fault in rule(tree, path)] == []


_IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
    importlib.import_module(module.name)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "room", ["config", "report", "runs", "pictures", "store.layout", "tracking.tracker"]
)
def test_a_room_that_needs_no_torch_loads_none(room):
    command = [sys.executable, "-c", _IMPORT_ALL, f"finetune.{room}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_no_name_of_a_file_or_class_stands_in_two_rooms():
    places: dict[str, set[str]] = {}
    for path in FILES:
        room = part_of(path.relative_to(ROOT).as_posix())
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for name in [path.name, *classes]:
            places.setdefault(name, set()).add(room)
    twice = {name: rooms for name, rooms in places.items() if len(rooms) > 1}
    assert twice.keys() <= {"__init__.py"}


def undescribed(node: type[Node]) -> list[str]:
    known = descriptions(node)
    return [f"{node.__name__}.{name}" for name in node.model_fields if not known.get(name)]


def nodes(base: type[Node] = Node) -> Iterator[type[Node]]:
    for node in base.__subclasses__():
        yield node
        yield from nodes(node)


def inner_room(module: str, room: str) -> str:
    """Return the folder of `room` that a dotted module lies in; "" for files beside them."""
    parts = module.removeprefix(f"finetune.{room}.").split(".")
    return parts[0] if (ROOT / room / parts[0]).is_dir() else ""


def ways_between_inner_rooms(room: str) -> dict[str, set[str]]:
    """Return which folders of a room import from which; files beside the folders do not count."""
    ways: dict[str, set[str]] = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        module = ".".join(("finetune", *path.relative_to(ROOT).with_suffix("").parts))
        here = inner_room(module, room)
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            other = inner_room(name, room) if name.startswith(f"finetune.{room}.") else ""
            if here and other and other != here:
                ways.setdefault(here, set()).add(other)
    return ways


@pytest.mark.parametrize("room", sorted({p.parent.parent.name for p in ROOT.glob("*/*/*.py")}))
def test_the_folders_of_a_room_import_each_other_one_way(room):
    TopologicalSorter(ways_between_inner_rooms(room)).prepare()


def test_folders_that_import_each_other_are_seen():
    assert "media" in ways_between_inner_rooms("data")["targets"]
    with pytest.raises(CycleError):
        TopologicalSorter({"media": {"targets"}, "targets": {"media"}}).prepare()


def test_every_field_of_the_config_is_described():
    for module in pkgutil.walk_packages(finetune.config.__path__, "finetune.config."):
        importlib.import_module(module.name)
    ours = [node for node in nodes() if node.__module__.startswith("finetune.config.")]
    assert len(ours) > 20
    assert [name for node in ours for name in undescribed(node)] == []


def test_a_field_without_a_description_is_seen():
    class Bare(Node):
        described: int
        """What it is for."""
        bare: int

    assert undescribed(Bare) == ["Bare.bare"]
