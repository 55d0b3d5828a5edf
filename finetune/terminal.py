"""The console that shows lines and tables to people, with hidden characters made visible."""

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from finetune.visible import one_line, visible


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
