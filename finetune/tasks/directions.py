"""Which way every figure of an evaluation improves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.config.metric_keys import Better
from finetune.errors import FinetuneError, Key, did_you_mean
from finetune.tasks.metrics import Measure


@dataclass(frozen=True, slots=True)
class Directions:
    """Which way every figure of an evaluation improves; nothing else decides this.

    Args:
        by_tag: The direction by tag (`validation/loss`); None if unknown.
    """

    by_tag: Mapping[str, Better | None]

    @classmethod
    def of(
        cls,
        measures: Sequence[Measure],
        tasks: Sequence[str] = (),
        split: str = "validation",
        *,
        has_loss: bool = True,
    ) -> "Directions":
        """Return the directions of a task's metrics and of the loss, which comes first.

        Args:
            measures: The metrics.
            tasks: Names of the tasks in a list, each with a loss of its own; they come last.
            split: The part of the data.
            has_loss: Whether evaluations have a loss.
        """
        declared: dict[str, Better | None] = {f"{split}/loss": "lower"} if has_loss else {}
        declared |= {f"{split}/{one.name}": one.better for one in measures}
        return cls(declared | dict.fromkeys((f"{split}/{name}/loss" for name in tasks), "lower"))

    def falls(self, tag: str) -> bool:
        """Tell whether lower figures are the better ones."""
        return self.by_tag[tag] == "lower"

    def by_name(self) -> dict[str, Better | None]:
        """Return the direction of each figure by its name without a part, such as `loss`."""
        return {tag.partition("/")[2]: better for tag, better in self.by_tag.items()}

    def main(self) -> str | None:
        """Return the tag that `checkpoint: {best: auto}` means.

        It is the first metric of the task whose direction is known, else the loss. None if nothing
        is evaluated.
        """
        known = [tag for tag, better in self.by_tag.items() if better is not None]
        # The loss comes first in the mapping, before those of the tasks of a list.
        metrics = [tag for tag in known if tag.rpartition("/")[2] != "loss"]
        return next(iter([*metrics, *known]), None)

    def fault(self, tag: str, key: Key) -> FinetuneError | None:
        """Return why a metric cannot be watched; None if it can.

        Args:
            tag: The metric, as a rule of the config names it.
            key: That rule.
        """
        if tag not in self.by_tag:
            known = ", ".join(sorted(self.by_tag)) or "none, for there are no validation samples"
            return FinetuneError(
                f"no metric {tag!r} is ever logged; there are: {known}",
                hint=self._meant(tag),
                key=key,
            )
        if self.by_tag[tag] is None:
            name = tag.partition("/")[2]
            return FinetuneError(
                f"metric {tag!r} does not say which way it improves",
                hint="set higher_is_better = True or False in its class, or write better: higher "
                f"or lower beside its path (task: {{type: import, better: {{{name}: lower}}}})",
                key=key,
            )
        return None

    def _meant(self, tag: str) -> str | None:
        """Return a hint for a metric that is never logged."""
        if not self.by_tag:
            return "data.split: {validation: 0.2} sets aside a fifth, for example"
        # Most likely the metric is written without its part: `accuracy` for `validation/accuracy`.
        whole = [known for known in self.by_tag if known.endswith(f"/{tag}")]
        return f"did you mean {whole[0]!r}?" if whole else did_you_mean(tag, self.by_tag)
