"""Raw values as samples for prediction, as evaluation sees them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from finetune.config.data import DataConfig
from finetune.data.audio import notes_on_audio
from finetune.data.batches import Samples
from finetune.data.column_kinds import as_bytes, column_of, empty_column
from finetune.data.loading.random_steps import naming_left_out
from finetune.data.loading.ready import Fetching, samples_from
from finetune.data.media.image_headers import notes_on_new
from finetune.data.opening import DataFacts
from finetune.data.readers.chunks import shown_names
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.samples import FOR_NO_LOSS
from finetune.data.steps.aligned_answers import with_answers
from finetune.data.steps.aligned_tags import with_tags
from finetune.data.steps.fitted_notes import notes_on_met
from finetune.data.steps.pipeline import run_steps
from finetune.data.steps.sample_steps import (
    SampleSteps,
    counting_anew,
    kept_by_run,
    notes_on_texts,
    plan_sample_steps,
)
from finetune.data.table import Table
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing
from finetune.redaction import redacted


def plan_input_steps(
    config: DataConfig,
    facts: DataFacts,
    preprocessing: Preprocessing,
    *,
    trust: Collection[str],
) -> SampleSteps:
    """Return the steps that prepare samples for prediction, with tokenizers loaded, for many calls.

    Args:
        config: `data:` of the config that the network was trained with.
        facts: Facts of the training data.
        preprocessing: What the network was pretrained with.
        trust: Names of packages whose code may be imported.

    Raises:
        DataError: a step cannot be made.
    """
    columns = {name: empty_column(facts.kinds[name]) for name in facts.inputs}
    return plan_sample_steps(config, columns, preprocessing, trust, kept_by_run(facts.fitted))


def prepare_inputs(
    rows: Mapping[str, Sequence[Any]],
    config: DataConfig,
    facts: DataFacts,
    preprocessing: Preprocessing,
    *,
    trust: Collection[str],
    steps: SampleSteps | None = None,
    places: Places = THE_INPUT,
    tell: Callable[[str], None] = lambda _: None,
    batch_size: int = 32,
) -> Samples:
    """Return raw values as samples for prediction, as evaluation sees them; without target.

    Args:
        rows: Values of each of `facts.inputs`: texts, numbers or arrays, images as paths, encoded
            bytes or PIL images. Other columns are ignored.
        config: `data:` of the config that the network was trained with.
        facts: Facts of the training data.
        preprocessing: What the network was pretrained with.
        trust: Names of packages whose code may be imported.
        steps: Result of `plan_input_steps`; made anew if left out.
        places: Places of the rows, for messages.
        tell: Receives a line for each thing that was converted or cut.
        batch_size: Samples of a batch, by which `data.workers: auto` is decided.

    Raises:
        DataError: a column is missing, or a value is not of the kind that training had.
    """
    for name in facts.inputs:
        if name not in rows:
            raise DataError(f"no column {name!r}; there are: {shown_names(rows)}")
    lengths = {len(rows[name]) for name in facts.inputs}
    if lengths == {0} or len(lengths) > 1:
        raise DataError("columns of different lengths" if len(lengths) > 1 else "no samples")
    columns = {
        name: column_of(name, rows[name], facts.kinds[name], places, config.source or config.train)
        for name in facts.inputs
    }
    for name in facts.of_bytes:
        columns[name] = as_bytes(name, columns[name], places, tell)
    table = Table(columns, torch.arange(lengths.pop()), places.files[0], places=places)
    steps = steps or plan_input_steps(config, facts, preprocessing, trust=trust)
    other = counting_anew(steps.other)
    with naming_left_out(steps.left_out):
        outcome, for_loss = with_tags(run_steps(table, other), FOR_NO_LOSS, table, tell)
        outcome, for_loss = with_answers(outcome, for_loss, table, tell)
        # each sample is seen once, by the process that predicts
        place = table.without_columns().place
        fetching = _fetching(config, table, batch_size, pads=preprocessing.pads_images)
        samples = samples_from(outcome, for_loss, place=place, fetching=fetching, tell=tell)
    # Redacted: a path or a label in them may be a secret of the config.
    on_files = (*notes_on_new(columns), *notes_on_audio({n: [c] for n, c in columns.items()}, 0))
    for note in (*on_files, *notes_on_texts(other), *notes_on_met(other)):
        tell(redacted(note))
    return samples


def _fetching(config: DataConfig, table: Table, batch_size: int, *, pads: bool) -> Fetching:
    """Return how samples are made: by processes if the config has them, for several batches."""
    # Processes for a batch or two would cost more than they save.
    if config.workers == 0 or len(table) <= _FEW_BATCHES * batch_size:
        return Fetching(pads=pads)
    return Fetching(workers=config.workers, batch_size=batch_size, pads=pads)


_FEW_BATCHES = 2
