"""Answers as targets: the tokens with which each answer begins and ends.

Letters: N samples, B samples of a batch, L tokens.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from finetune.data.lazy_tokens import LazyColumn
from finetune.data.media.pixel_classes import IGNORED
from finetune.data.ragged import Ragged


@dataclass(frozen=True, slots=True)
class AnswerPlaces:
    """First and last token of each answer, found where a batch is gathered.

    Args:
        starts: At which character of the text each token begins; -1 for all other tokens.
        ends: Before which character it ends; -1 for all other tokens.
        answers: First character of each answer, and the one behind its last, `(N, 2)`; 0 and 0
            where there is no answer, -1 and -1 where it is not to be learnt.
    """

    starts: Ragged | LazyColumn
    ends: Ragged | LazyColumn
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def gather(self, rows: Tensor, length: int | None = None) -> Tensor:
        """Return first and last token of the answers at `rows`, `(B, 2)`.

        Both are 0 without an answer, and -100 where it is not to be learnt, or not whole in the
        tokens.
        """
        starts, ends = (each.gather(rows, length) for each in (self.starts, self.ends))
        first, behind = self.answers[rows].unsqueeze(2).unbind(1)
        is_text = starts >= 0
        begins, stops = is_text & (ends > first), is_text & (starts < behind)
        places = torch.arange(starts.shape[1])
        # If no token begins there, the start lies behind all tokens, and no end comes after it.
        start = torch.where(begins, places, starts.shape[1]).amin(1)
        end = torch.where(stops, places, -1).amax(1)
        # Whole: what is cut off may begin in the middle of the answer.
        is_whole = (start <= end) & (ends.amax(1) >= behind.squeeze(1))
        found = torch.stack([start, end], dim=1).masked_fill(~is_whole[:, None], IGNORED)
        # In this order: -1 and -1 are equal too, and mean that nothing is learnt.
        return found.masked_fill(first == behind, 0).masked_fill(first < 0, IGNORED)

    def fingerprint(self) -> bytes:
        """Return a hash of the answers; which tokens they are follows from the tokens."""
        numbers = self.answers.contiguous().numpy().data
        return blake2b(b"answers" + bytes(numbers), digest_size=16).digest()

    def num_cut(self) -> int | None:
        """Return how many answers to learn are not whole in the tokens; None if nobody knows."""
        if isinstance(self.starts, LazyColumn):
            return None
        rows = (self.answers[:, 0] >= 0).nonzero().flatten()
        return sum(int((self.gather(some)[:, 0] == IGNORED).sum()) for some in rows.split(1000))
