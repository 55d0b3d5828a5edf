"""What frozen calls give that is the same in every batch: position embeddings, say."""

from collections.abc import Mapping

from torch import Tensor

from finetune.bits import fingerprint, same_bits
from finetune.store.verdicts import Verdicts

_FAULT = "give other values in every batch where the trial found the same in all"


class Constants:
    """Those of batches of one shape.

    Rows of samples are of no use without them. So they are taken from the first batch of a
    process, which runs for real, and compared in all others that run, and by digest with those
    of processes before. Once they differ, no batch of this shape is answered any more.

    Args:
        shape: Its name in the verdicts.
        verdicts: Where digests are kept, and what speaks against the shape.
    """

    def __init__(self, shape: str, verdicts: Verdicts) -> None:
        self._shape, self._verdicts = shape, verdicts
        self._values: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, leaf: str) -> Tensor:
        """Return a copy of one, by the name of the leaf."""
        return self._values[leaf].clone()

    def agree(self, found: Mapping[str, Tensor]) -> bool:
        """Learn, or compare, what a batch gave, by the name of the leaf; tell whether all agree."""
        agreed = [self._agrees(leaf, value) for leaf, value in found.items()]
        if not all(agreed):
            self._verdicts.add(self._shape, _FAULT)
        return all(agreed)

    def _agrees(self, leaf: str, value: Tensor) -> bool:
        if leaf in self._values:
            return same_bits(self._values[leaf], value)
        self._values[leaf] = value.detach().clone()
        name, digest = f"{self._shape}: {leaf}", fingerprint(value)
        if name not in self._verdicts:
            self._verdicts.add(name, digest)
        return self._verdicts[name] == digest
