"""Count what texts lose as they become tokens: those cut off, unknown ones, texts without any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.errors import named

_MANY = 0.2
"""Share of unknown tokens from which on a note is given: names and signs are fewer."""


@dataclass(slots=True)
class CutTexts:
    """Running counts of the texts that were tokenized, and of those that were cut."""

    num_texts: int = 0
    num_cut: int = 0
    tokens: int = 0
    """Tokens of all texts, including those cut off."""
    tokens_cut: int = 0
    longest: int = 0
    """Tokens of the longest text, including those cut off."""
    drawn_from: int = 0
    """Texts of which those were drawn that are counted; 0 if all are counted."""
    num_empty: int = 0
    of_texts: int = 0
    """Tokens kept, without those that every text gets."""
    unknown: int = 0
    """How many of these are the token that the tokenizer gives to unknown text."""

    def add(self, lengths: Tensor, cut: Tensor, of_no_text: int, unknown: int) -> None:
        """Add some texts to the count.

        Args:
            lengths: Tokens kept of each text, (N,).
            cut: Tokens cut off each text, (N,).
            of_no_text: Tokens that every text gets, such as those of its beginning and end.
            unknown: How many kept tokens of all texts are the one for unknown text.
        """
        if len(lengths) == 0:
            return
        whole = lengths + cut
        self.num_texts += len(lengths)
        self.num_cut += int((cut > 0).sum())
        self.tokens += int(whole.sum())
        self.tokens_cut += int(cut.sum())
        self.longest = max(self.longest, int(whole.max()))
        self.num_empty += int((whole <= of_no_text).sum())
        self.of_texts += int((lengths - of_no_text).clamp(min=0).sum())
        self.unknown += unknown

    def notes(self, columns: Sequence[str], max_length: int) -> list[str]:
        """Return lines on what was cut, on texts without a token, and on many unknown tokens."""
        what = "pairs" if len(columns) > 1 else "texts"
        drawn = f", drawn from {self.drawn_from:,}," if self.drawn_from else ""
        among = f"of {self.num_texts:,} {what}{drawn} of {named(columns)}"
        on_cut = (
            f"{self.num_cut:,} {among} are cut to "
            f"max_length {max_length}: {self.tokens_cut / max(1, self.tokens):.1%} of all tokens "
            f"are lost, the longest has {self.longest:,}; {{type: tokenize, max_length: ...}} of "
            "data.transforms says how many are kept"
        )
        on_empty = f"{self.num_empty:,} {among} have no token: they are empty, or blank"
        share = self.unknown / max(1, self.of_texts)
        on_unknown = (
            f"{share:.1%} of the tokens {among} are unknown to the tokenizer, to which all of them "
            "are alike: is it for this language, and for letters of this case?"
        )
        found = (
            (self.num_cut > 0, on_cut),
            (self.num_empty > 0, on_empty),
            (share >= _MANY, on_unknown),
        )
        return [line for is_so, line in found if is_so]


def tokens_cut(encodings: Sequence[Any], lengths: Sequence[int], max_length: int) -> list[int]:
    """Return how many tokens a fast tokenizer cut off each text or pair.

    Args:
        encodings: Results of `tokenizers`.
        lengths: Tokens kept of each text.
        max_length: The limit; only texts of that length can have been cut.
    """
    # The overflow is kept by `tokenizers` anyway; to tokenize without a limit would take twice the
    # time.
    pairs = zip(encodings, lengths, strict=True)
    return [_num_lost(one) if length >= max_length else 0 for one, length in pairs]


def _num_lost(encoding: Any) -> int:
    """Return how many tokens are only in the overflow, that is, were cut off.

    The overflow of a pair repeats each piece of one text beside each piece of the other: pieces are
    told apart by their position, and each counts once.
    """
    overflow = set().union(*map(_pieces, encoding.overflowing))
    return sum(size for *_, size in overflow - _pieces(encoding))


_Place = tuple[int | None, int, int]
"""Place of a token: its word, and where it begins and ends, in the text or in a word that was given
as one."""


def _pieces(encoding: Any) -> set[tuple[int, _Place, _Place, int]]:
    """Return, for each text: its number, first and last place of its tokens, their number."""
    places: dict[int, list[_Place]] = {}
    for text, word, (start, end) in zip(
        encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True
    ):
        if text is not None:
            places.setdefault(text, []).append((word, start, end))
    return {(text, all_[0], all_[-1], len(all_)) for text, all_ in places.items()}
