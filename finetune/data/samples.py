"""Samples and columns as steps pass them on: dicts by name, in which steps replace entries."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from finetune.data.images import Images
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.media.pixel_classes import IGNORED as IGNORED
from finetune.data.ragged import Ragged
from finetune.data.table import Column, Numbers
from finetune.data.targets.token_targets import TokenTarget
from finetune.data.vectors import Vectors
from finetune.errors import DataError, named

Prepared = Column | Ragged | LazyColumn | Vectors
"""What transforms turn columns into."""
OfLoss = Prepared | TokenTarget
"""Columns for the loss."""
Sample = dict[str, Any]
Columns = dict[str, Prepared]

WORDS = "word numbers"
"""Name of the column, among those of tokens, that says which word begins with each token."""
TOKEN_STARTS, TOKEN_ENDS = "token starts", "token ends"
"""Names of the columns, among those of tokens, that say at which character of the text with the
answer each token begins, and before which it ends; -1 for all other tokens."""
CHARACTERS, RIGHT_ANSWERS, WINDOW_OF = "characters", "right answers", "window of"
"""Names of the columns of a batch with the characters of its texts, as numbers; with those of all
right answers, `BETWEEN_ANSWERS` behind each; and with the row whose text each sample is a window
of."""
BETWEEN_ANSWERS = -2
"""Stands behind each of several answers that are written as numbers of characters."""
WORDS_OF = "words of "
"""Beginning of the name of that column in a batch for prediction, before the name of its texts."""


class ForLoss(NamedTuple):
    """The columns of a batch that the loss takes and the network does not.

    Args:
        target: Name of the target among them; None without a target.
        columns: The columns by name, the target too.
        made: Those that are columns of the sample, where steps move them along.
    """

    target: str | None = None
    columns: Mapping[str, OfLoss] = MappingProxyType({})

    made: Mapping[str, Numbers | Images] = MappingProxyType({})


FOR_NO_LOSS = ForLoss()
"""Without targets, as in prediction."""


def replaced(
    old: Mapping[str, Any], names: Collection[str], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `old` with `new` in place of the first of `names`, and without the other `names`.

    Raises:
        DataError: another column of `old` has a name in `new`.
    """
    # To lose a column because of an equal name would pass unseen until a network misses it.
    kept = old.keys() - set(names)
    if taken := next((name for name in new if name in kept), None):
        raise DataError(
            f"the transform of {named(names)} gives a column {taken!r}, and there is one of that "
            "name already"
        )
    result: dict[str, Any] = {}
    for name, value in old.items():
        if name not in names:
            result[name] = value
        # In the place of the first: `stack` without names takes columns in their order.
        elif not new.keys() <= result.keys():
            result.update(new)
    return result
