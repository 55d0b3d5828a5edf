"""Outputs of frozen calls that are the same in every batch, such as position embeddings."""

from collections.abc import Mapping

from torch import Tensor

from finetune.bits import fingerprint, same_bits
from finetune.store.verdicts import Verdicts

_FAULT = "give other values in every batch where the trial found the same in all"


class Constants:
    """The constants of one batch shape.

    Batches are answered with rows and constants. Constants are taken from the first batch that
    runs in a process, compared in every later batch that runs, and compared by digest with those
    of earlier processes. Once they differ, no batch of this shape is answered any more.

    Args:
        shape: Name of the shape in the verdicts.
        verdicts: Holds the digests, and why a shape is not exact; mutated.
    """

    def __init__(self, shape: str, verdicts: Verdicts) -> None:
        self._shape, self._verdicts = shape, verdicts
        self._values: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, leaf: str) -> Tensor:
        """Return a copy of one constant, by the name of the output."""
        return self._values[leaf].clone()

    def agree(self, found: Mapping[str, Tensor]) -> bool:
        """Add or compare a batch's constants, by name of the output; tell whether all agree."""
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
