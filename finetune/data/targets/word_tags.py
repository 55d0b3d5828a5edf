"""Tags of words as targets of tokens: the first token of a word has its tag, others have none.

Letters: N samples, B samples of a batch, L tokens.
"""

from dataclasses import dataclass
from hashlib import blake2b

from torch import Tensor

from finetune.data.lazy_tokens import LazyColumn
from finetune.data.ragged import Ragged


@dataclass(frozen=True, slots=True)
class WordTags:
    """Targets of tokens, made from the tags of words where a batch is gathered.

    So tokens that are made as they are needed have tags, too.

    Args:
        words: Number of the word that begins with each token; -1 for all other tokens.
        tags: Numbers of the classes of all words.
    """

    words: Ragged | LazyColumn
    tags: Ragged

    def __len__(self) -> int:
        return len(self.words)

    def gather(self, rows: Tensor, length: int | None = None) -> Tensor:
        """Return the targets of the tokens at `rows`, `(B, L)`."""
        words = self.words.gather(rows, length)
        places = self.tags.offsets[rows].unsqueeze(1) + words.clamp(min=0)
        # A text without words has no place of its own; `Ragged` keeps a number behind the last one.
        places.clamp_(max=len(self.tags.values) - 1)
        return self.tags.values[places].long().masked_fill_(words < 0, self.tags.pad)

    def fingerprint(self) -> bytes:
        """Return a hash of the tags; which token has which follows from the tokens."""
        return blake2b(b"first token" + self.tags.fingerprint(), digest_size=16).digest()

    @property
    def num_lost(self) -> int | None:
        """Words that have no token; None where tokens are made as they are needed."""
        if isinstance(self.words, LazyColumn):
            return None
        return len(self.tags.values) - 1 - int((self.words.values[:-1] >= 0).sum())
