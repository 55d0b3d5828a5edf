"""Consoles and tables for people, with hidden characters made visible."""

from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.visible import one_line, visible

STYLES = {
    "trained": "green",
    "frozen": "dim",
    "mixed": "yellow",
    "drawn": "yellow",
    "unreached": "red",
}
# rich would assume 80 columns there, and cut names.
_WIDTH_OF_A_PIPE = 400
"""Characters per line when output is no terminal, so that tables are not cut."""


class Terminal(Console):
    """A rich console that prints texts as they are: `[bold]` in a class name is not markup.

    Args:
        file: The stream to write to.
        width: Characters per line; the terminal's width if left out.
    """

    def __init__(self, file: TextIO, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, or a table cell, as rich text with hidden characters escaped."""
        return super().render_str(visible(text), **options)

    def tell(self, text: str = "", indent: int = 0) -> None:
        """Print a line; line feeds in it are escaped. A terminal gets it broken between words.

        Args:
            text: The line.
            indent: Blanks before all but the first of the parts that it is broken into.
        """
        # Elsewhere a long line stays one line: programs and searches expect that.
        if not self.is_interactive:
            self.print(one_line(text), soft_wrap=True)
            return
        # On a narrow terminal there would be no room beside the indent.
        indent = indent if self.width >= 3 * indent else 0
        line = self.render_str(one_line(text))
        parts = line[indent:].wrap(self, self.width - indent)
        margin = Text("\n" + " " * indent)
        self.print(line[:indent] + margin.join(parts), soft_wrap=True)


def console_for(file: TextIO) -> Terminal:
    """Return a console for a stream; its tables are not cut if the stream is no terminal."""
    return Terminal(file, width=None if file.isatty() else _WIDTH_OF_A_PIPE)


def print_lines(lines: Sequence[tuple[str, str]], console: Terminal) -> None:
    """Print pairs of label and text, one per line, with the texts aligned."""
    width = max((len(label) for label, _ in lines), default=0)
    for label, text in lines:
        console.tell(f"{label:<{width}}  {text}", indent=width + 2)


class _Table(Table):
    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row. A string is escaped to one line; a rich `Text` may hold several lines."""
        shown = (one_line(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def new_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table with columns aligned left, followed by columns aligned right."""
    table = _Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    # "fold" wraps long names: rich would cut them and put an ellipsis.
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def figure(value: float) -> str:
    """Return a metric as text: four decimals, or four significant digits if very small or large."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
