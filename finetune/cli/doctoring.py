"""The verb `doctor`, which diagnoses a run folder."""

from typing import TYPE_CHECKING, Any

import typer

from finetune.cli.options import Json, Run
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.visible import tell, tell_json

if TYPE_CHECKING:
    from finetune.runs.doctor import Diagnosis


def doctor_command(run: Run, as_json: Json = False) -> None:
    """Verify a run folder: what is whole, where a run would resume, whether the proof holds.

    Exit code 0 if nothing is damaged, 2 otherwise.
    """
    # numpy takes a while to load: `--help` must not wait for it
    from finetune.runs.doctor import examine

    with results() as out:
        diagnosis = examine(run)
        if as_json:
            tell_json(_as_json(diagnosis), out)
        else:
            width = max(len(finding.label) for finding in diagnosis.findings)
            for finding in diagnosis.findings:
                tell(f"{finding.label:{width}}  {finding.text}", out)
    # After the output: a script sees the code, and a person all of the findings.
    if not diagnosis.is_sound:
        raise typer.Exit(FinetuneError.exit_code)


def _as_json(diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return a diagnosis as plain data, for `--json`."""
    return {
        "run": str(diagnosis.run),
        "sound": diagnosis.is_sound,
        "checkpoints": [
            {"path": str(state.path), "whole": state.fault is None, "fault": state.fault}
            for state in diagnosis.checkpoints
        ],
        "goes_on_from": None if diagnosis.start is None else str(diagnosis.start),
        "predicts_with": None if diagnosis.chosen is None else str(diagnosis.chosen),
        "findings": [
            {"label": f.label, "text": f.text, "damage": f.is_damage} for f in diagnosis.findings
        ],
    }
