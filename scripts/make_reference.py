"""Write docs/reference/: keys from the schema, verbs from their help, Python from docstrings.

Run: `python scripts/make_reference.py`. A test compares the pages with what this script makes.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

import finetune
from finetune.cli import app
from finetune.config.schema import schema

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
_MADE = "<!-- Made by scripts/make_reference.py: change the code, not this page. -->\n"
_KINDS = ("type", "method", "compares")
"""Keys whose one value says which node is meant."""
Schema = Mapping[str, Any]


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    whole = schema()
    places = _places(whole)
    tops = [key for key in whole["properties"] if key in places.values()]
    found = {f"keys_{top}.md": _page_of_key(whole, top, places) for top in tops}
    made = {
        "keys.md": _first_page(whole, tops),
        **found,
        "verbs.md": _page_of_verbs(),
        "python.md": _page_of_python(),
    }
    return {name: re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" for name, text in made.items()}


def _places(whole: Schema) -> dict[str, str]:
    """Return the top key under which each node is described: the first that leads to it."""
    places: dict[str, str] = {}
    for top, value in whole["properties"].items():
        waiting = list(_references(value))
        while waiting:
            name = waiting.pop(0)
            if name not in places:
                places[name] = top
                waiting += _references(whole["$defs"][name])
    return places


def _references(node: Any) -> Iterator[str]:
    """Yield the names of the nodes that a piece of the schema refers to."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for key, child in node.items():
            if key not in ("default", "mapping"):
                yield from _references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)


def _first_page(whole: Schema, tops: Iterable[str]) -> str:
    rows = []
    for key, value in whole["properties"].items():
        shown = f"[`{key}`](keys_{key}.md)" if key in tops else f"`{key}`"
        needed = "required" if key in whole["anyOf"][0]["required"] else ""
        rows.append(f"| {shown} | {needed} | {_cell(value.get('description', ''))} |")
    intro = (
        "The keys at the top of a config. `finetune schema` prints the same as a JSON Schema, "
        "which editors take for completion: a first line "
        "`# yaml-language-server: $schema=finetune.json` names the file that it was saved to."
    )
    return "\n".join(
        ["# All keys", "", _MADE, intro, "", "| key | | says |", "|---|---|---|", *rows, ""]
    )


def _page_of_key(whole: Schema, top: str, places: Mapping[str, str]) -> str:
    value = whole["properties"][top]
    lines = [f"# Keys of `{top}`", "", _MADE, _text(value.get("description", "")), ""]
    lines += [f"`{top}` is {_values(value, top, places)}.", ""]
    for name in [name for name, place in places.items() if place == top]:
        lines += _node(name, whole["$defs"][name], top, places)
    return "\n".join(lines)


def _node(name: str, node: Schema, top: str, places: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines about one node: what it is for, and a row for each of its keys."""
    yield from (f"## {name}", "", _text(node.get("description", "")), "")
    if "oneOf" in node and node["oneOf"][0].get("title"):
        yield "Classes: " + ", ".join(f"`{one['title']}`" for one in node["oneOf"]) + "."
        yield ""
        return
    properties = node.get("properties", {})
    kinds = [key for key in _KINDS if "const" in properties.get(key, {})]
    for key in kinds:
        yield from (f"Chosen by `{key}: {properties[key]['const']}`.", "")
    shown = {key: value for key, value in properties.items() if key not in kinds}
    if not properties:
        values = _values(node, top, places)
        yield from (f"{values[0].upper()}{values[1:]}.", "")
    if shown:
        yield from ("| key | value | default | says |", "|---|---|---|---|")
        for key, value in shown.items():
            default = _default(key, value, node)
            described = _cell(value.get("description", ""))
            yield f"| `{key}` | {_values(value, top, places)} | {default} | {described} |"
        yield ""


def _default(key: str, value: Schema, node: Schema) -> str:
    if key in node.get("required", ()):
        return "required"
    return f"`{_yaml(value['default'])}`" if "default" in value else ""


def _yaml(value: Any) -> str:
    """Return a value as YAML has it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("|", "\\|").replace("\n", "\\n") if value != "" else '""'


def _values(value: Schema, top: str, places: Mapping[str, str]) -> str:
    """Return in words which values a piece of the schema allows."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        page = "" if places[name] == top else f"keys_{places[name]}.md"
        return f"[{name}]({page}#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_values(one, top, places) for one in value[key]))
    if "const" in value or "enum" in value:
        said = value.get("enum", [value.get("const")])
        return " or ".join(f"`{_yaml(one)}`" for one in said)
    return _plain(value, top, places)


_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}


def _plain(value: Schema, top: str, places: Mapping[str, str]) -> str:
    """Return in words which values of a plain type are allowed."""
    kinds = value.get("type", "any value")
    if isinstance(kinds, list):
        return " or ".join(_plain({**value, "type": kind}, top, places) for kind in kinds)
    if kinds == "array":
        items = value.get("items")
        return f"list of {_values(items, top, places)}" if items else "list"
    if kinds == "object":
        inner = value.get("additionalProperties")
        of = _values(inner, top, places) if isinstance(inner, Mapping) and inner else ""
        return f"mapping to {of}" if of else "mapping"
    return str(_WORDS.get(kinds, kinds))


def _text(text: str) -> str:
    """Return a description as a paragraph of Markdown."""
    return re.sub(r"\s*\n\s*", " ", text.strip()).replace("<", "&lt;") if text else ""


def _cell(text: str) -> str:
    """Return a description as a cell of a table."""
    return _text(text).replace("|", "\\|")


def _page_of_verbs() -> str:
    group: Any = typer.main.get_command(app)
    lines = ["# All verbs", "", _MADE]
    lines += ["`finetune VERB --help` prints the same. [Exit codes](../reliability.md)", ""]
    for name, verb in _verbs(group, ""):
        words = " ".join(_argument(one) for one in verb.params if one.param_type_name != "option")
        lines += [f"## {name}", "", f"`finetune {name} {words}`".replace(" `", "`"), ""]
        lines += [_text(verb.help or ""), ""]
        if verb.params:
            lines += ["| | says | default |", "|---|---|---|", *map(_parameter, verb.params), ""]
    return "\n".join(lines)


def _verbs(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Yield every verb with its name, those of groups below it included."""
    for name, verb in group.commands.items():
        if verb.hidden:
            continue
        if hasattr(verb, "commands"):
            yield from _verbs(verb, f"{before}{name} ")
        else:
            yield f"{before}{name}", verb


def _argument(one: Any) -> str:
    """Return an argument as a line of usage has it; one that may be left out in brackets."""
    name = str(one.metavar or one.name.upper())
    return name if one.required else f"[{name}]"


def _parameter(one: Any) -> str:
    """Return the row of an option or an argument."""
    is_option = one.param_type_name == "option"
    name = "`, `".join([*one.opts, *one.secondary_opts]) if is_option else _argument(one)
    value = f" {one.metavar}" if is_option and one.metavar else ""
    default = one.default
    is_told = isinstance(default, str | int | float) and not isinstance(default, bool)
    told = f"`{default}`" if is_told else ""
    return f"| `{name}{value}` | {_cell(one.help or '')} | {told} |"


def _page_of_python() -> str:
    lines = ["# Python", "", _MADE]
    lines += ["Everything in `finetune`; the torch half loads when a name is first used."]
    lines += ["[Python](../python.md) has examples that run.", ""]
    for name in finetune.__all__:
        thing = getattr(finetune, name)
        lines += [f"## {name}", ""]
        if not inspect.isclass(thing):
            lines += ["```text", f"{name}{_signature(thing)}", "```", ""]
        lines += [*_docstring(inspect.getdoc(thing) or ""), ""]
    return "\n".join(lines)


def _signature(thing: Any) -> str:
    """Return the arguments of a function as its source has them."""
    function = ast.parse(inspect.getsource(thing)).body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = ast.unparse(function.args)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    text = f"({arguments}){returns}"
    return text if len(text) < 80 else text.replace(", ", ",\n    ")


_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example|Examples):$")


def _docstring(text: str) -> Iterator[str]:
    """Yield a docstring in the form of Google as Markdown: sections bold, arguments as a list."""
    section = ""
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section = found[1]
            yield from (f"**{section}**", "")
        elif section and re.match(r"^    [\w*.,| ]+: ", line):
            name, _, rest = line.strip().partition(": ")
            yield f"- `{name}`: {rest}" if section != "Returns" else line.strip()
        elif not line.strip():
            yield ""
        else:
            yield f"  {line.strip()}" if section in ("Args", "Raises") else line.strip()


def main() -> None:
    """Write all pages, and remove those that are no longer made."""
    made = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        FOLDER.joinpath(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
