"""Completion is installed into real shells, which then complete what a person types."""

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own home folder, with a program `finetune` on the path."""
    program = tmp_path / "bin" / "finetune"
    program.parent.mkdir()
    # as pip writes it: completion goes by the name of the program
    program.write_text(f"#!{sys.executable} -P\nfrom finetune.__main__ import run\nrun()\n")
    program.chmod(0o755)
    root = str(Path(__file__).parents[2])
    for name, value in {
        "HOME": str(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": root,
        "TERM": "xterm",
        "ZDOTDIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first_config.yaml").touch()
    return tmp_path


def install(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    # with a second command the shell stays the parent, by which the kind of shell is found
    command = [shell, "-c", "finetune --install-completion; true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert f"{shell} completion installed in" in done.stdout, done.stderr


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, shell):
        self.seen = ""
        self.process, self.keys = pty.fork()
        if self.process == 0:
            os.execvp(shell, [shell, "-i"])

    def wait_for(self, text):
        while text not in self.seen:
            readable, _, _ = select.select([self.keys], [], [], 120)
            assert readable, f"{text!r} does not come after {self.seen!r}"
            self.seen += os.read(self.keys, 4096).decode(errors="replace")

    def type(self, text):
        self.seen = ""
        os.write(self.keys, text.encode())

    def close(self):
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self.keys)


# from Python 3.12 on; the child is a shell at once
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(("shell", "settings"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_a_tab_completes_in_bash_and_zsh(shell, settings, home):
    install(shell)
    with (home / settings).open("a") as file:
        file.write("\nPS1='ready> '\n")
    terminal = Terminal(shell)
    try:
        terminal.wait_for("ready> ")
        terminal.type("finetune cert\t")  # the first tab of a session
        terminal.wait_for("certify")
        terminal.type("--ch\t")
        terminal.wait_for("--check")
        terminal.type("\x15finetune plan first_\t")  # Ctrl-U takes out what the line holds
        terminal.wait_for("first_config.yaml")
    finally:
        terminal.close()


def test_fish_offers_verbs_choices_and_files(home):
    install("fish")

    def offered(typed):
        command = ["fish", "-c", f'complete -C "{typed}"']
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return [line.partition("\t")[0] for line in done.stdout.splitlines()]

    assert offered("finetune cert") == ["certify"]
    assert {"hf", "onnx", "safetensors"} <= set(offered("finetune export r --format "))
    assert "first_config.yaml" in offered("finetune plan first_")


def test_a_menu_has_one_short_line_for_each_verb(monkeypatch, capsys):
    from finetune.cli import app
    from finetune.cli.completing import one_short_line

    monkeypatch.setenv("_FINETUNE_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "finetune ")
    with pytest.raises(SystemExit):
        app(prog_name="finetune")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.partition("\t")[2]) <= 76 for line in lines)
    assert len(lines) > 15
    assert "finetune certify" not in "".join(lines)
    assert one_short_line("what it does\nan example") == "what it does"
