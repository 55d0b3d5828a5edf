"""What `init` asks on a terminal, and what it never asks."""

import io
import sys

import pytest
from odd_folders import table


class Typed(io.StringIO):
    """Standard input of a terminal, with lines that a person types."""

    def isatty(self):
        return True


@pytest.fixture
def typed(tmp_path, monkeypatch, command_line):
    """Call `init` on a terminal where a person types these lines."""
    monkeypatch.chdir(tmp_path)
    rows = [[n % 7, n % 6, "xy"[n % 2], n % 5 * 1.5] for n in range(40)]
    table(tmp_path / "t.csv", ["alpha", "beta", "gamma", "delta"], rows)

    def run(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", Typed("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
        return command_line("init", *arguments)

    return run


def test_it_asks_for_data_and_for_what_no_name_tells(typed, tmp_path):
    shown = typed(["t.csv", "gamma"])
    assert shown.code == 0, shown.err
    assert "Which column is to be learnt?" in shown.err
    assert "target: gamma" in (tmp_path / "t.yaml").read_text()


def test_a_number_answers_too_and_an_empty_line_takes_the_first(typed, tmp_path):
    assert typed(["3", ""], "t.csv", "--out", "a.yaml").code == 0
    assert "target: beta" in (tmp_path / "a.yaml").read_text()
    assert typed([""], "t.csv", "--out", "b.yaml").code == 0
    assert "target: delta" in (tmp_path / "b.yaml").read_text()


def test_whole_numbers_may_be_a_quantity(typed, tmp_path):
    shown = typed(["regression"], "t.csv", "--target", "alpha")
    assert "Is alpha a class, or a quantity?" in shown.err
    assert "type: regression" in (tmp_path / "t.yaml").read_text()


@pytest.mark.parametrize("flag", ["--yes", "--json"])
def test_it_asks_nothing_on_wish(typed, flag):
    shown = typed([], "t.csv", flag)
    assert shown.code == 0, shown.err
    assert "?" not in shown.err


def test_no_answer_ends_without_a_file(typed, tmp_path):
    shown = typed(["omega", "omega", "omega"], "t.csv")
    assert shown.code == 2
    assert "no answer that was offered" in shown.err
    assert not (tmp_path / "t.yaml").exists()
