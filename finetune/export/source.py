"""What a format needs to write a network, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from finetune.export.agreement import Outputs, Pass
from finetune.models.declared import Network
from finetune.predict import Predictor
from finetune.runs.run_record import note_on_the_end, read_run
from finetune.tasks.thresholds import Threshold
from finetune.train.after.trained import TrainedRun
from finetune.train.build import build_model_and_task, located

_EXAMPLES = 3
"""Samples of an example batch: not 1 or 2, sizes that networks have themselves."""
_TOKENS = 7
TOKEN_COLUMNS = frozenset({"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"})
"""Columns whose second axis is as long as the longest text of a batch."""


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A trained run on the CPU, in float32."""

    predictor: Predictor

    @property
    def run(self) -> TrainedRun:
        """The run."""
        return self.predictor.run

    @property
    def network(self) -> Network:
        """The network in evaluation mode."""
        return self.predictor.model

    @property
    def threshold(self) -> Threshold | None:
        """The thresholds of the run, which no format holds; None if they are the usual ones."""
        found = self.run.task.threshold
        return None if found is None or found.is_usual else found

    @property
    def unfinished(self) -> str | None:
        """A sentence on a run that has not reached its end; None for one that has."""
        return note_on_the_end(read_run(self.run.folder.path))

    def base_network(self) -> Network:
        """Build the network as it was before training, in evaluation mode."""
        config, run = self.run.config, self.run
        with located(config):
            return build_model_and_task(config, run.facts, run.specs, run.device)[0].eval()

    def example(self) -> dict[str, Tensor]:
        """Return an example batch."""
        found = {name: spec.example(_EXAMPLES) for name, spec in self.run.specs.items()}
        # Copies: torch.export would take a view for one whose base is an argument, too.
        return {n: t[:, :_TOKENS].clone() if is_tokens(n) else t for n, t in found.items()}


@dataclass(frozen=True, slots=True)
class WrittenFormat:
    """What a format has written into its folder."""

    code: str
    """Python code that loads it in the folder, for the model card."""
    run: Callable[[Pass], Outputs]
    """Loads it anew and runs it on samples."""
    library: str
    """Library that loads it, as the hub names it."""
    about: tuple[str, ...] = ()
    """Sentences for the model card."""
    front: Mapping[str, str] | None = None
    """Further entries at the head of the model card."""
    doubt: str | None = None
    """Hint on what may be the reason if it disagrees with the predictor."""


def is_tokens(column: str) -> bool:
    """Tell whether a column holds tokens, `(B, T)`."""
    return column.rpartition(".")[2] in TOKEN_COLUMNS


def argument_names(columns: tuple[str, ...]) -> dict[str, str]:
    """Return the names of arguments that columns become: other characters than letters are `_`."""
    plain = dict[str, str]()
    for number, name in enumerate(columns):
        letters = "".join(one if one.isalnum() and one.isascii() else "_" for one in name)
        # Two columns may become one name, such as `a b` and `a-b`; a number tells them apart.
        fits = letters.isidentifier() and letters not in plain.values()
        plain[name] = letters if fits else f"column_{number}"
    return plain


@dataclass(frozen=True, slots=True)
class Checked:
    """A comparison with the predictor: on how many samples, and the largest difference."""

    samples: int
    difference: float
