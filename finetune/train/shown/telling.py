"""Terminal output of a run, on standard error: messages, phases, live view, end."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from finetune.freezing.origins import Origins, sum_of
from finetune.freezing.plan import Plan
from finetune.redaction import redacted
from finetune.runs.progress import Progress
from finetune.runs.saved_proof import empty_proof
from finetune.streams import unfailing
from finetune.terminal import console_for, figure, print_lines
from finetune.tracking.console import Console
from finetune.tracking.tracker import Tracker
from finetune.train.shown.phase_table import print_phases


class Telling(Tracker):
    """A tracker that writes to the terminal. Before `speak` it only collects messages.

    A run is built, with messages, before anyone knows whether its `fit` is to be quiet.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._console: Console | None = None
        self._verify = "phase"

    def speak(self, plan: Plan) -> None:
        """Print the collected messages and the phases; from now on print everything at once."""
        self._console = Console(sys.stderr)
        self._verify = plan.verify
        for line in self._waiting:
            self._console.message(line)
        self._waiting.clear()
        print_phases(plan, console_for(unfailing(sys.stderr)), full=False, decay=None, spans=None)

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Show the present step."""
        if self._console is not None:
            self._console.begin(step, total_steps, lines=lines)

    def phase_begins(self, name: str, ends: int, following: Sequence[str]) -> None:
        """Show the present phase, the step at which it ends at the latest, and what comes then."""
        if self._console is not None:
            self._console.phase_begins(name, ends, following)

    def step_is_done(self, step: int, samples: int, recorded: int) -> None:
        """Show that a step of so many samples is done; see `Console.step_is_done`."""
        if self._console is not None:
            self._console.step_is_done(step, samples, recorded)

    @contextmanager
    def shows_activity(self) -> Iterator[None]:
        """Show in the block what the run does besides training steps."""
        with nullcontext() if self._console is None else self._console.shows_activity():
            yield

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show the figures of a step."""
        if self._console is not None:
            self._console.scalars(step, values)

    def message(self, text: str) -> None:
        """Print one line, or keep it until `speak`."""
        if self._console is None:
            self._waiting.append(text)
        else:
            self._console.message(text)

    def close(self) -> None:
        """Remove the live view, if there is one."""
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
        is_averaged: bool,
        threshold: str | None,
    ) -> None:
        """Print the figures of a run, its proof, its folder, and which weights it uses.

        Args:
            progress: Position at the end of the run.
            figures: Figures of the weights in use, by tag.
            origins: For each proof, where the values of its tensors come from.
            run: Folder of the run.
            best: The metric that chose the best weights; None if the last ones are used.
            is_averaged: Whether the weights in use are averages over the steps.
            threshold: The threshold of each label that the run has chosen; None if it chose none.
        """
        lines = [(tag, figure(value)) for tag, value in figures.items()]
        if lines and progress.best.step is not None:
            lines.insert(0, ("figures", f"by the weights of step {progress.best.step}"))
        if threshold is not None:
            lines.append(("threshold", threshold))
        if progress.stopped_early:
            lines.append(("stopped", f"early, at step {progress.step}"))
        tensors = sum(proof["tensors"] for proof in progress.proofs)
        if tensors:
            proof = f"{tensors} frozen tensors are bit-identical"
        else:
            is_off = self._verify == "off"
            proof = "off, by freeze.verify" if is_off else empty_proof(self._verify)
        lines.append(("proof", proof))
        if tensors:
            lines.append(("weights", str(sum_of(origins))))
        lines += [
            ("run", redacted(str(run))),
            ("curves", redacted(f"finetune tensorboard {run.parent}")),
            ("used", _weights_used(progress, best, is_averaged=is_averaged)),
        ]
        print_lines(lines, console_for(unfailing(sys.stderr)))


def _weights_used(progress: Progress, best: str | None, *, is_averaged: bool) -> str:
    """Return the words for the weights that are tested and used, and why these."""
    weights = "averaged weights" if is_averaged else "weights"
    if progress.best.step is None or progress.best.value is None:
        why = "" if best is None else f": {best} was never defined"
        return f"the last {weights}, of step {progress.step}{why}"
    value = figure(progress.best.value)
    return f"the {weights} of step {progress.best.step}, the best by {best}: {value}"
