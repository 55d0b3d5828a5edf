"""A config that is made to exhaust memory or the stack, to wait for ever, or to build objects."""

import os
import time

import pytest
import yaml

TAGS = [
    "!!python/object/apply:os.system ['{command}']",
    "!!python/object/apply:subprocess.Popen [['sh', '-c', '{command}']]",
    "!!python/object/new:os.system ['{command}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['{command}']",
    "!env HOME",
    "!include secret.yaml",
]


def laughs(width, depth):
    """Return a mapping whose last entry stands for width ** depth values."""
    lines = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines)


BOMBS = {
    "billion laughs": laughs(9, 10),
    "many levels": laughs(2, 60),
    "nested anchors": "a: " + "".join(f"&x{n} [" for n in range(5000)),
    "an anchor in itself": "a: &a [*a, *a]",
    "mappings of aliases": "a: &a {b: 1}\n"
    + "\n".join(f"k{n}: &k{n} {{x: *{'a' if not n else f'k{n - 1}'}}}" for n in range(200)),
    "5000 brackets": "a: " + "[" * 5000,
    "5000 closed brackets": "a: " + "[" * 5000 + "]" * 5000,
    "5000 braces": "{a: " * 5000,
    "5000 dashes": "- " * 5000,
    "5000 question marks": "? " * 5000,
    "a million commas": "a: [" + "," * 1_000_000,
    "a long key": "a" * 500_000 + ": 1",
    "a long number": "seed: " + "9" * 500_000,
    "a long line of colons": "a:" * 200_000,
    "100001 values": "a: [" + "1," * 100_001 + "]",
    "too large": "# " + "x" * (1 << 20),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("verb", ["validate", "train"])
def test_a_bomb_is_refused_at_once(attack, bomb, verb):
    attack.write("x.yaml", bomb)
    start = time.process_time()
    line = attack.refused(verb, "x.yaml")
    assert time.process_time() - start < 2, "it went off, if slowly"
    assert line.startswith("x.yaml:")


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_in_a_file_that_is_extended_is_refused(attack, bomb):
    attack.write("bomb.yaml", bomb)
    attack.write("x.yaml", "extends: bomb.yaml\n")
    assert attack.refused("validate", "x.yaml").startswith("bomb.yaml:")


@pytest.mark.parametrize("name", ["billion laughs", "5000 brackets", "5000 braces"])
def test_a_bomb_on_the_command_line_is_refused(attack, config, name):
    attack.write("x.yaml", config)
    assert attack.refused("validate", "x.yaml", "-o", f"data={BOMBS[name]}").startswith("-o data")


def test_a_bomb_in_the_config_of_a_run_folder_is_refused(attack, planted):
    attack.write("runs/honest/config.yaml", BOMBS["billion laughs"])
    for command in (
        ["eval", planted],
        ["predict", planted, "points.csv"],
        ["train", "honest.yaml"],
    ):
        attack.refused(*command)


def test_files_that_together_hold_too_much_are_refused(attack):
    """Each file is within the limits; the aliases of one count anew where another has its own."""
    for number in range(70):
        attack.write(f"b{number}.yaml", f"extends: b{number + 1}.yaml\na: {number}\n")
    attack.write("b70.yaml", "a: 1\n")
    assert "more than 64 files" in attack.refused("validate", "b0.yaml")


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_builds_nothing(attack, config, tag):
    text = yaml.safe_dump(config).replace("lr: 0.3", f"lr: {tag.format(command=attack.command)}")
    attack.write("x.yaml", text)
    assert "tags are not allowed" in attack.refused("train", "x.yaml")
    attack.write("y.yaml", config)
    override = f"seed={tag.format(command=attack.command)}"
    assert "tags are not allowed" in attack.refused("train", "y.yaml", "-o", override)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "circle.yaml", ".", "x.yaml", "gone.yaml"])
def test_what_is_extended_must_be_a_file_that_ends(attack, target):
    os.mkfifo(attack.folder / "pipe")
    (attack.folder / "circle.yaml").symlink_to("circle.yaml")
    attack.write("x.yaml", f"extends: {target}\n")
    line = attack.refused("validate", "x.yaml")
    assert line.startswith("x.yaml:1: extends: ")


@pytest.mark.parametrize("text", ['"\\0"', '"\\ud800"', "x" * 5000, "'~nobody/x'", "a/" * 2000])
def test_a_name_that_no_file_can_have_is_told(attack, text):
    attack.write("x.yaml", f"extends: {text}\n")
    assert attack.refused("validate", "x.yaml").startswith("x.yaml:1: ")
