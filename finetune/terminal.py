"""The console that shows lines and tables to people, with hidden characters made visible."""

from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.visible import one_line, visible

STYLES = {"trained": "green", "frozen": "dim", "mixed": "yellow", "unreached": "red"}
_WIDTH_OF_A_PIPE = 400
"""Characters; no table is cut short where no terminal has to show it."""


class Terminal(Console):
    """A console that prints texts as they are: `[bold]` in a class name is no markup.

    Args:
        file: Where to write.
        width: Characters of a line; those of the terminal if left out.
    """

    def __init__(self, file: TextIO, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text ready to be shown. All strings pass here, those in tables as well."""
        return super().render_str(visible(text), **options)

    def tell(self, text: str = "") -> None:
        """Print a line that is not cut to the width of the terminal."""
        self.print(one_line(text), soft_wrap=True)


def console_for(file: TextIO) -> Terminal:
    """Return a console whose tables are not cut short in a pipe."""
    return Terminal(file, width=None if file.isatty() else _WIDTH_OF_A_PIPE)


def print_lines(lines: Sequence[tuple[str, str]], console: Terminal) -> None:
    """Print texts with their labels before them, one below the other."""
    width = max((len(label) for label, _ in lines), default=0)
    for label, text in lines:
        console.tell(f"{label:<{width}}  {text}")


class _Table(Table):
    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row. A string is shown on one line; `Text` may hold several."""
        shown = (one_line(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def new_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table; its figures stand to the right."""
    table = _Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def figure(value: float) -> str:
    """Return a metric with four decimals, or in powers of ten where those would say nothing."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
