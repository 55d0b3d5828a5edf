"""LISA: every few steps other blocks, drawn at random, train; the rest of the blocks is frozen.

Source: Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
Fine-Tuning", arXiv 2403.17919, algorithm 1. As in the authors' code, k blocks are drawn uniformly
without replacement, for the first time before step 0, and what lies outside the blocks (embeddings,
last norm, head) trains all the time.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.freezing.policies.policy import Facts, Mask, Memory


@dataclass(frozen=True, slots=True)
class LisaDraws:
    """Draws `num_drawn` of the blocks every `period` steps."""

    blocks: Mapping[int, frozenset[str]]
    """The parameters of each block, by its depth."""
    period: int
    """Steps that a mask lasts."""
    num_drawn: int
    """Blocks that train at a time."""
    seed: int
    """The run's."""

    @property
    def name(self) -> str:
        """Name of the method, as in the config."""
        return "lisa"

    @property
    def says(self) -> str:
        """One line for `plan`."""
        return (
            f"every {self.period} steps {self.num_drawn} of {len(self.blocks)} blocks are drawn at "
            "random and train, the other ones are frozen; what is outside the blocks trains always"
        )

    @property
    def not_cached(self) -> str | None:
        """Why the activation cache is off: rows would be of no use after a few steps."""
        return f"off, lisa draws other blocks every {self.period} steps"

    def first(self, memory: Memory) -> Mask:
        """Return the first draw."""
        return self._draw(memory)

    def observe(self, facts: Facts, memory: Memory) -> Mask | None:
        """Return the next draw when the present one has lasted its steps."""
        return self._draw(memory) if facts.step >= self.ends_by(facts.began) else None

    def ends_by(self, began: int) -> int:
        """Return the step of the next draw."""
        return began + self.period

    def misfit(self, masks: Sequence[Mask], memory: Memory) -> str | None:
        """Return why these are not the draws of this seed, or None. Draws follow from numbers."""
        if memory != {"draws": len(masks)}:
            # Cut: a forged file may hold a text of any length.
            return f"lisa remembers {str(memory)[:80]}, not {len(masks)} draws"
        for number, mask in enumerate(masks):
            if mask != self._drawn(number):
                return f"draw {number} of lisa is {str(list(mask))[:80]}, which it never drew"
        return None

    def _draw(self, memory: Memory) -> Mask:
        """Return the next draw, and count it in `memory`."""
        number: int = memory.get("draws", 0)
        memory["draws"] = number + 1
        return self._drawn(number)

    def _drawn(self, number: int) -> Mask:
        """Return a draw: a pure function of seed and number, whatever else draws random numbers."""
        # Python seeds by a hash of the text that is the same in every process and on every machine.
        draw = random.Random(f"lisa {self.seed} {number}")
        # Sorted before the draw as well, so that it does not depend on the order of a dict.
        return tuple(sorted(draw.sample(sorted(self.blocks), self.num_drawn)))
