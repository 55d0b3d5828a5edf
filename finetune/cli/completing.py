"""Completion in shells: what Typer installs, with its script for zsh mended."""

import textwrap

from typer import _completion_shared

_WIDTH = 76
_FIRST_TAB = '[[ "${funcstack[1]}" != _%(prog_name)s ]] || %(complete_func)s "$@"\n'


def complete_at_the_first_tab() -> None:
    """Let zsh complete at the first tab of a session too; changes what Typer installs.

    zsh loads the script at that tab, as the body of a function, and Typer's script then only
    defines the function that later tabs call (typer 0.24 to 0.29). The scripts have no public
    name; where a version has none under this one, its own are installed.
    """
    scripts = getattr(_completion_shared, "_completion_scripts", {})
    if "zsh" in scripts and not scripts["zsh"].endswith(_FIRST_TAB):
        scripts["zsh"] += _FIRST_TAB


def one_short_line(text: str | None) -> str | None:
    """Return the first line of a description, so short that no menu of a shell breaks it."""
    first = (text or "").partition("\n")[0]
    return textwrap.shorten(first, _WIDTH, placeholder=" ...") or None
