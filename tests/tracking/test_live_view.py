"""The view of a run on a terminal: right figures, in lines that fit, whatever the width."""

import math

import pytest
from rich.cells import cell_len

from finetune.tracking.live_view import Standing, lines_of


def standing(**others):
    """A run at step 120 of 490, in the first of three phases, half a second a step."""
    view = Standing(
        490, 120, phase="head", ends=147, following=("top", "all"), epoch=2.449,
        rate=1e-3, samples_per_step=32, **others,
    )  # fmt: skip
    view.losses.extend([4.0, 3.0, 2.0, 1.0])
    view.moments.extend([10.0, 10.5, 11.0])
    return view


def test_the_lines_say_where_the_run_is_how_fast_and_what_comes_next():
    first, figures, last = lines_of(standing(activity="evaluating validation: 64 samples"), 100)
    assert first.startswith("120/490   ━")
    assert first.endswith("24%   2 steps/s   0:00:14 left in head")  # 27 steps of half a second
    assert figures == "epoch 2.449   loss 1 █▆▃▁   lr 0.001   64 samples/s"
    assert last == "evaluating validation: 64 samples   then top, all"


def test_time_left_is_a_bound_while_the_cache_is_filled():
    first, *_ = lines_of(standing(is_filling=True), 100)
    assert first.endswith("at most 0:00:14 left in head")


def test_slow_steps_have_a_pace_after_the_second_one():
    view = Standing(10, 1, ends=10)
    view.moments.append(5.0)
    assert lines_of(view, 80)[0].endswith("10%")
    view.step = 2
    view.moments.append(65.0)
    assert lines_of(view, 80)[0].endswith("20%   60 s/step   0:08:00 left")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    lines = lines_of(standing(activity="reading 第一章.csv: 9,000 rows" * 3), width)
    assert len(lines) == 3
    assert all(0 < cell_len(line) <= width for line in lines)
    assert all(len(line) == width for line in lines[:1] if width >= 80), "the bar fills the line"


def test_a_terminal_without_unicode_gets_ascii():
    assert all(line.isascii() for line in lines_of(standing(), 80, is_unicode=False))


def test_losses_that_are_no_numbers_leave_gaps():
    view = standing()
    view.losses.extend([math.nan, math.inf, 4.0])
    assert "loss 4 █▆▃▁  █" in lines_of(view, 80)[1]


def test_a_name_cannot_forge_a_line_or_move_the_cursor():
    view = standing()
    view.phase = "a\nb\x1b[2J"
    lines = lines_of(view, 200)
    assert "a\\nb\\x1b[2J" in lines[0]
    assert not any(character in line for line in lines for character in "\n\x1b")
