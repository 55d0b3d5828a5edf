"""Remarks on new samples: each once, whatever its numbers, and for each column."""

from types import SimpleNamespace

from finetune.predict.remarks import Remarks

GAP = "column {!r}: {} of {} cells are empty, filled with {}"


def test_a_remark_on_another_column_is_told_and_one_with_other_numbers_is_not():
    lines = []
    remarks = Remarks(SimpleNamespace(notes=()), lines.append)
    for name in ("x1", "x2", 'x"3', "x'4"):
        remarks.tell(GAP.format(name, 1, 8, 0.5))
    remarks.tell(GAP.format("x2", 7, "1,000", 0.25))
    assert lines == [GAP.format(name, 1, 8, 0.5) for name in ("x1", "x2", 'x"3', "x'4")]
