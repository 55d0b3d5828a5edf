"""What an editor shows over `finetune schema`: the YAML language server itself is asked."""

import json
from pathlib import Path

import pytest
from language_server import LanguageServer

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
DIGITS = (ROOT / "configs" / "digits.yaml").read_text("utf-8")
LINE = "# yaml-language-server: $schema=.finetune-schema.json\n"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    from finetune.config.editor_schema import editor_schema

    folder = tmp_path_factory.mktemp("project")
    (folder / ".finetune-schema.json").write_text(json.dumps(editor_schema()), "utf-8")
    server = LanguageServer(folder)
    yield server
    server.close()


def test_no_shipped_config_has_a_mistake_in_an_editor(editor):
    names = [path.relative_to(ROOT).as_posix().replace("/", "_") for path in SHIPPED]
    texts = [LINE + path.read_text("utf-8") for path in SHIPPED]
    found = {n: editor.mistakes_in(n, text) for n, text in zip(names, texts, strict=True)}
    assert {name: mistakes for name, mistakes in found.items() if mistakes} == {}
    assert len(found) > 40


BROKEN = {
    "a key at the top": ("optimizer:", "optimiser:", "Property optimiser is not allowed"),
    "a key of a section": ("batch_size:", "batchsize:", "Property batchsize is not allowed"),
    "a number out of bounds": ("epochs: ", "epochs: -", "exclusive minimum of 0"),
    "a layer": ("type: Conv2d", "type: Conv2e", '"Conv2d"'),
    "an argument that is missing": ("kernel_size", "kernelsize", 'Missing property "kernel_size"'),
    "an optimizer": ("type: AdamW", "type: AdamV", '"AdamW"'),
    "a task": ("type: classification", "type: classificatoin", '"classification"'),
    "a text for a number": ("lr: 2e-3", "lr: fast", "number"),
    "no optimizer": ("optimizer: {", "# {", 'Missing property "optimizer"'),
    "a method": ("task:", "freeze: {method: ulmfitt}\ntask:", '"ulmfit"'),
    "a trigger": (
        "task:",
        "freeze: {phases: [{train: [a], until: {epoch: 2}}]}\ntask:",
        "Property epoch is not allowed",
    ),
    "the same key twice": ("task:", "seed: 1\ntask:", "unique"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mistake_is_marked_in_its_line(editor, kind):
    old, new, wanted = BROKEN[kind]
    text = LINE + DIGITS.replace(old, new, 1)
    found = editor.mistakes_in(f"broken {kind}.yaml", text)
    changed = 1 + text[: text.index(new)].count("\n")
    line = changed if "Missing property" not in wanted or "argument" in kind else None
    assert any(wanted in said and line in (None, at) for at, said in found), found


def test_a_file_that_extends_another_may_hold_a_part_of_a_section(editor):
    base = LINE + "extends: digits.yaml\n"
    assert editor.mistakes_in("part.yaml", base + "optimizer: {lr: 1e-2}\n") == []
    assert editor.mistakes_in("deep.yaml", base + "data: {source: {path: x.csv}}\n") == []
    for section in ("optimizer: {beta: 3}", "train: {epochs: -2}", "foo: 3"):
        ((line, _),) = editor.mistakes_in(f"{section[:3]}.yaml", f"{base}{section}\n")
        assert line == 3
    alone = editor.mistakes_in("alone.yaml", LINE + "optimizer: {lr: 1e-2}\n")
    assert any("Missing property" in said for _, said in alone)


OFFERED = {
    "sections": ("|", {"model", "data", "task", "freeze", "optimizer", "extends"}),
    "methods": ("freeze:\n  method: |", {"ulmfit", "lisa", "bitfit"}),
    "keys of a method": ("freeze:\n  method: ulmfit\n  |", {"rate_decay", "head"}),
    "triggers": (
        "freeze:\n  phases:\n    - name: a\n      until:\n        |",
        {"epochs", "plateau"},
    ),
    "layers": ("model:\n  layers:\n    - name: a\n      type: Conv2|", {"Conv2d"}),
    "arguments of a layer": (
        "model:\n  layers:\n    - name: a\n      type: Conv2d\n      |",
        {"out_channels", "kernel_size", "padding_mode"},
    ),
    "transforms of torchvision": ("data:\n  transforms:\n    - type: Random|", {"RandomErasing"}),
    "arguments of a transform": (
        "data:\n  transforms:\n    - type: RandomResizedCrop\n      |",
        {"size", "ratio", "antialias"},
    ),
    "keys of a source": ("data:\n  source:\n    type: csv\n    |", {"path", "separator"}),
    "optimizers": ("optimizer:\n  type: |", {"AdamW", "SGD", "Muon"}),
    "arguments of an optimizer": ("optimizer:\n  type: AdamW\n  |", {"betas", "layer_decay"}),
    "words": ("train:\n  precision: |", {"float32", "bfloat16"}),
}


@pytest.mark.parametrize("kind", OFFERED)
def test_keys_classes_and_arguments_are_completed(editor, kind):
    text, wanted = OFFERED[kind]
    assert wanted <= set(editor.offered(f"offered {kind}.yaml", f"{LINE}{text}\n"))


HOVERED = {
    "lr": ("lr:", "l|r:", "Peak learning rate"),
    "epochs": ("epochs:", "epo|chs:", "Passes over the training samples"),
    "until": (
        "task:",
        "freeze: {phases: [{train: [a], un|til: {epochs: 2}}]}\ntask:",
        "What ends the phase",
    ),
}


@pytest.mark.parametrize("key", HOVERED)
def test_a_key_is_explained_where_the_mouse_rests(editor, key):
    old, new, wanted = HOVERED[key]
    shown = editor.at_cursor("hover", f"hover {key}.yaml", LINE + DIGITS.replace(old, new, 1))
    assert wanted in json.dumps(shown["contents"])
