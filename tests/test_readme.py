"""What README and docs say is so: configs load, commands parse, snippets run, outputs are real."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from finetune.cli import app
from finetune.config.loader import load_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


CONFIGS = {block.splitlines()[0].removeprefix("# "): block for block in blocks("yaml")}
SESSIONS = {
    block.splitlines()[0].removeprefix("$ "): block.splitlines()[1:] for block in blocks("console")
}
COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for block in [*blocks("bash"), *blocks("console")]
    for line in block.splitlines()
    if re.match(r"(\$ )?(finetune|\./scripts/)", line)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the configs that ship and those that the README prints, as a reader has it."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, text in CONFIGS.items():
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command):
    """Run a command of the README; return the lines of its standard output and error."""
    verb = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = done.communicate()
    # How far reading is depends on the machine, and is said only where it takes a while.
    counts = ("reading", "tokenizing")
    return [line.rstrip() for line in output.splitlines() if not line.startswith(counts)]


def session(verb):
    """Return the one command of a verb whose output the pages print, and that output."""
    [command] = [command for command in SESSIONS if command.startswith(f"finetune {verb} ")]
    return command, SESSIONS[command]


def test_the_readme_is_short_and_names_every_room():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    rooms = [path.parent.name for path in (ROOT / "finetune").glob("*/__init__.py")]
    assert [room for room in rooms if f"`{room}/`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_pages_have_what_these_tests_look_for():
    assert len(CONFIGS) >= 3
    assert len(blocks("python")) >= 2
    assert len(COMMANDS) >= 8


def test_no_two_configs_on_the_pages_have_one_name():
    names = [block.splitlines()[0] for block in blocks("yaml")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "broken.yaml"])
def test_its_configs_load(folder, name):
    load_config(folder / name)


def test_the_config_it_prints_is_the_one_that_ships(folder):
    (folder / "printed.yaml").write_text(CONFIGS["configs/bbc_news.yaml"], encoding="utf-8")
    printed, shipped = load_config("printed.yaml"), load_config("configs/bbc_news.yaml")
    assert printed.model_copy(update={"name": shipped.name}) == shipped


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_parse(folder, command):
    program, *arguments = shlex.split(command)
    if program.startswith("./"):
        assert (ROOT / program).is_file()
        return
    verb = typer.main.get_command(app).commands[arguments[0]]
    verb.make_context(arguments[0], arguments[1:])
    assert all(Path(word).is_file() for word in arguments if word.endswith(".yaml"))


@pytest.mark.parametrize("source", blocks("python"), ids=lambda source: source.splitlines()[-1])
def test_its_python_runs_and_prints_what_it_says(folder, capsys, source):
    exec(compile(source, "README.md", "exec"), {})
    said = [line.partition("# prints: ")[2] for line in source.splitlines() if "# prints: " in line]
    assert said
    assert capsys.readouterr().out.splitlines()[: len(said)] == said


def test_its_error_messages_are_what_validate_prints(folder):
    command, output = session("validate")
    assert run(command) == output


@pytest.mark.slow
def test_its_plan_is_what_plan_prints(folder):
    command, output = session("plan")
    assert run(command) == output


def without_figures(line):
    return re.sub(r"\d[\d.e-]*", "N", line)


@pytest.mark.slow
def test_its_training_is_what_train_prints_but_for_the_figures(folder):
    command, said = session("train")
    lines = run(command)
    rest = iter(without_figures(line) for line in lines)
    for line in said:
        assert line == "..." or without_figures(line) in rest, line
    figures = dict(line.split()[:2] for line in lines if line.startswith("test/"))
    assert float(figures["test/accuracy"]) >= 0.95
    [tensors] = [int(line.split()[1]) for line in lines if line.startswith("proof ")]
    assert tensors > 100


def test_files_that_the_pages_name_are_there():
    text = "\n".join(
        page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
    )
    rooms = "|".join(path.parent.name for path in (ROOT / "finetune").glob("*/__init__.py"))
    named = set(re.findall(rf"`((?:{rooms})/[\w/]+\.py)`", text))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / "finetune" / name).is_file()] == []
