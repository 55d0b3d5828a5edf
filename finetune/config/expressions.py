"""Regular expressions in a config: one that cannot be used is told with its line."""

from typing import Annotated

from pydantic import AfterValidator

from finetune.config.messages import shown
from finetune.patterns import faults_of_expression


def _usable(text: str) -> str:
    """Return an expression; raise ValueError if it cannot be used."""
    # Checked with the config, so that the message names a line. Names to match it with come later.
    for fault in faults_of_expression(text):
        raise ValueError(f"{fault}, got {shown(text)}")
    return text


Expression = Annotated[str, AfterValidator(_usable)]
"""A regular expression that compiles, and that `patterns.TimeLimit` runs in limited time."""
