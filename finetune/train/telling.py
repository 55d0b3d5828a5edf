"""What a run tells the person who started it, on standard error: its lines, its phases, its end."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.freezing.origins import Origins, sum_of
from finetune.freezing.plan import Plan
from finetune.redaction import redacted
from finetune.runs.progress import Progress
from finetune.streams import unfailing
from finetune.terminal import console_for, figure, print_lines
from finetune.tracking.console import Console
from finetune.tracking.tracker import Tracker
from finetune.train.phase_table import print_phases


class Telling(Tracker):
    """Says nothing before it is to speak, and then what it was told until then as well.

    A run is built before anyone knows whether its `fit` is to be quiet.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._console: Console | None = None

    def speak(self, plan: Plan) -> None:
        """Say all that waits, then the phases; from now on everything at once."""
        self._console = Console(sys.stderr)
        for line in self._waiting:
            self._console.message(line)
        self._waiting.clear()
        print_phases(plan, console_for(unfailing(sys.stderr)), full=False, decay=None, spans=None)

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Show where the run stands."""
        if self._console is not None:
            self._console.begin(step, total_steps, lines=lines)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show the figures of a step, if it is time to."""
        if self._console is not None:
            self._console.scalars(step, values)

    def message(self, text: str) -> None:
        """Say one line, or let it wait."""
        if self._console is None:
            self._waiting.append(text)
        else:
            self._console.message(text)

    def close(self) -> None:
        """Draw the bar a last time, if there is one."""
        if self._console is not None:
            self._console.close()

    def end(
        self,
        progress: Progress,
        figures: Mapping[str, float],
        origins: Sequence[Origins],
        run: Path,
        *,
        best: str | None,
    ) -> None:
        """Say what a run has reached, its proof, where to look next, and which weights it uses.

        Args:
            progress: Where the run ended.
            figures: What its weights have reached, by tag.
            origins: Where the values come from that each of its proofs covers.
            run: Its folder.
            best: The metric by which its best weights were chosen; None if the last ones are used.
        """
        lines = [(tag, figure(value)) for tag, value in figures.items()]
        if progress.stopped_early:
            lines.append(("stopped", f"early, at step {progress.step}"))
        tensors = sum(proof["tensors"] for proof in progress.proofs)
        proof = f"{tensors} frozen tensors are bit-identical" if tensors else "nothing was frozen"
        lines.append(("proof", proof))
        if tensors:
            lines.append(("weights", str(sum_of(origins))))
        lines += [
            ("run", redacted(str(run))),
            ("curves", redacted(f"finetune tensorboard {run.parent}")),
            ("used", _weights_used(progress, best)),
        ]
        print_lines(lines, console_for(unfailing(sys.stderr)))


def _weights_used(progress: Progress, best: str | None) -> str:
    """Say which weights were tested and are used to predict, and what makes them the best."""
    if progress.best.step is None or progress.best.value is None:
        why = "" if best is None else f": {best} was never defined"
        return f"the last weights, of step {progress.step}{why}"
    value = figure(progress.best.value)
    return f"the weights of step {progress.best.step}, the best by {best}: {value}"
