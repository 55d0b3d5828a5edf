"""A long task says how far it is: soon, seldom, and with the time that is left if it is known."""

import re

from finetune import counting
from finetune.counting import Counting


def test_a_short_task_says_nothing(capsys):
    rows = Counting("reading t.csv", "rows")
    rows.at(1000, 0.5)
    assert capsys.readouterr() == ("", "")


def test_a_long_one_has_a_line_with_the_time_left_and_no_other_for_a_while(capsys, monkeypatch):
    monkeypatch.setattr(counting, "_FIRST_S", 0)
    rows = Counting("reading t.csv", "rows")
    rows.at(1000, 0.5)
    rows.at(2000, 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"reading t\.csv: 1,000 rows, 50%, about \d+ s left\n", err)


def test_nothing_done_yet_is_no_line(capsys, monkeypatch):
    monkeypatch.setattr(counting, "_FIRST_S", 0)
    rows = Counting("predicting", "rows")
    rows.at(0)
    assert capsys.readouterr().err == ""
    rows.at(1)
    assert capsys.readouterr().err == "predicting: 1 rows\n"


def test_without_a_known_end_only_the_count_is_told(capsys, monkeypatch):
    monkeypatch.setattr(counting, "_FIRST_S", 0)
    Counting("tokenizing 'text'", "texts").at(1000)
    assert capsys.readouterr().err == "tokenizing 'text': 1,000 texts\n"
