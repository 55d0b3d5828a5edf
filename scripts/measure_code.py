#!/usr/bin/env python3
"""Measure the code of the package: sizes, comments, import cycles, names that stand twice.

    python scripts/measure_code.py [FOLDER] [--json]

FOLDER holds the package to measure; `finetune` if left out. Only syntax trees are read: nothing is
imported. A room is a folder of the package, or a file beside those folders.
"""

import argparse
import ast
import io
import json
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Room:
    """What one room of the package holds."""

    files: int = 0
    lines: int = 0
    comment_lines: int = 0
    functions: int = 0
    classes: int = 0
    longest_file: int = 0
    longest_function: int = 0
    file_names: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)

    @property
    def comment_share(self) -> float:
        """Comment lines per line, in percent."""
        return round(100 * self.comment_lines / max(1, self.lines), 1)


def room_of(path: Path) -> str:
    """Return the room of a file, `path` being relative to the package."""
    return path.parts[0].removesuffix(".py")


def comment_lines(source: str) -> int:
    """Count the lines that hold a comment; docstrings are none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def measure_file(room: Room, path: Path) -> None:
    """Add one file to the figures of its room."""
    source = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [n.name for n in nodes if isinstance(n, ast.ClassDef)]
    lines = source.count("\n")
    room.files += 1
    room.lines += lines
    room.comment_lines += comment_lines(source)
    room.functions += len(functions)
    room.classes += len(classes)
    room.longest_file = max(room.longest_file, lines)
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    room.longest_function = max([room.longest_function, *lengths])
    room.file_names.append(path.name)
    room.class_names.extend(classes)


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the dotted names of the package that a file imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == package)


def import_graph(folder: Path) -> dict[str, set[str]]:
    """Return for each module of the package the modules of the package that it imports."""
    modules = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = imported_modules(tree, folder.name)
        # `from package.module import thing` names the thing; its module is what is imported
        found = {one if one in modules else one.rpartition(".")[0] for one in named}
        graph[name] = (found & modules.keys()) - {name, folder.name}
    return graph


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return the modules that one imports, directly or through others."""
    found: set[str] = set()
    left = [start]
    while left:
        new = graph.get(left.pop(), set()) - found
        found |= new
        left.extend(new)
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach one another by their imports."""
    reach = {name: reached(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def rooms_both_ways(graph: Mapping[str, set[str]]) -> list[str]:
    """Return pairs of rooms that import each other: one of the two points up."""
    edges = {
        (name.split(".")[1], other.split(".")[1])
        for name, others in graph.items()
        for other in others
        if name.count(".") and other.count(".")
    }
    return sorted(f"{a} <-> {b}" for a, b in edges if a < b and (b, a) in edges)


def twice(rooms: Mapping[str, Room], names: str) -> list[str]:
    """Return the names that stand in more than one room."""
    places: dict[str, set[str]] = defaultdict(set)
    for room, figures in rooms.items():
        for name in getattr(figures, names):
            places[name].add(room)
    ours = {name: where for name, where in places.items() if name != "__init__.py"}
    return sorted(f"{n}: {', '.join(sorted(w))}" for n, w in ours.items() if len(w) > 1)


def measure(folder: Path) -> tuple[dict[str, Room], dict[str, list[str]]]:
    """Return the figures of each room, and what stands against the rules of the house."""
    rooms: dict[str, Room] = defaultdict(Room)
    for path in sorted(folder.rglob("*.py")):
        measure_file(rooms[room_of(path.relative_to(folder))], path)
    graph = import_graph(folder)
    return dict(rooms), {
        "import cycles": [" <-> ".join(group) for group in cycles(graph)],
        "rooms that import each other": rooms_both_ways(graph),
        "file names in two rooms": twice(rooms, "file_names"),
        "class names in two rooms": twice(rooms, "class_names"),
    }


FIGURES = (
    *("files", "lines", "comment_share", "functions", "classes"),
    *("longest_file", "longest_function"),
)


def total(rooms: Mapping[str, Room]) -> Room:
    """Return the figures of all rooms together."""
    whole = Room()
    for room in rooms.values():
        for name in ("files", "lines", "comment_lines", "functions", "classes"):
            setattr(whole, name, getattr(whole, name) + getattr(room, name))
        whole.longest_file = max(whole.longest_file, room.longest_file)
        whole.longest_function = max(whole.longest_function, room.longest_function)
    return whole


def main() -> None:
    """Print the figures of a package, a line a room."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ours = Path(__file__).parent.parent / "finetune"
    parser.add_argument("folder", nargs="?", type=Path, default=ours)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rooms, faults = measure(given.folder.resolve())
    figures = {
        name: {figure: getattr(room, figure) for figure in FIGURES}
        for name, room in [*sorted(rooms.items()), ("all", total(rooms))]
    }
    if given.json:
        print(json.dumps({"rooms": figures, "faults": faults}, indent=2))
        return
    headings = [figure.replace("_", " ") for figure in FIGURES]
    print(f"{'room':<14}", *(f"{heading:>16}" for heading in headings), sep="")
    for name, values in figures.items():
        print(f"{name:<14}", *(f"{value:>16}" for value in values.values()), sep="")
    for fault, found in faults.items():
        print(f"{fault}: {len(found)}", *found, sep="\n    ")


if __name__ == "__main__":
    main()
