"""The one way through: sources → columns and target → parts → transforms → samples to fetch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune.config.data import DataConfig, Transform
from finetune.config.task import ImportTask, Task
from finetune.data.columns import (
    Kind,
    choose_columns,
    column_of,
    columns_in_use,
    image_columns,
    kind_of,
    settle_columns,
)
from finetune.data.contents import KnownFiles
from finetune.data.identity import DataIdentity, identified, identity_of
from finetune.data.image_headers import read_alike
from finetune.data.joined import join_targets
from finetune.data.loader import Samples
from finetune.data.parting import (
    RawPart,
    labelled,
    notes_on_copies,
    notes_on_parts,
    parted,
    refuse_unseen_labels,
)
from finetune.data.pipeline import run_steps
from finetune.data.readers.chunks import shown_names
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.sources import open_source, sources_of
from finetune.data.table import Table
from finetune.data.tokenizing import Tokenize
from finetune.data.tokens import TokenStore
from finetune.data.transforms import PlannedStep, plan_steps, usual_steps
from finetune.errors import DataError
from finetune.models.declared import TensorSpec
from finetune.models.preprocessing import Preprocessing
from finetune.redaction import redacted


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the data says about itself, as plain data.

    Args:
        inputs: The raw columns that the network is fed from.
        target: The column it learns to give; None where an imported task needs none.
        classes: Names of the classes, each the place of its number; None where there are none.
        notes: What the user should know, a sentence each.
        sizes: Number of samples of each part.
        kinds: What each input column holds.
    """

    inputs: tuple[str, ...]
    target: str | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]
    sizes: dict[str, int]
    kinds: dict[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Every part with its targets, before any transform."""

    train: RawPart
    validation: RawPart | None
    test: RawPart | None
    facts: DataFacts
    identity: DataIdentity


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Every part, ready to be fetched."""

    train: Samples
    validation: Samples | None
    test: Samples | None
    facts: DataFacts
    identity: DataIdentity
    notes: tuple[str, ...] = ()
    """Notes on stored tokens and hashes of files, a line each."""

    @property
    def notes_on_all(self) -> tuple[str, ...]:
        """What a user should know of the data, a line each: `plan` and `train` tell all of it."""
        return (*self.facts.notes, *self.notes)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each column of a training batch, without the batch axis."""
        return self.train.specs


def open_data(
    config: DataConfig,
    task: Task,
    *,
    seed: int,
    trust: Collection[str],
    files: KnownFiles | None = None,
    head: Sequence[str] = (),
) -> OpenedData:
    """Read the sources, part them, and turn the targets into numbers.

    Args:
        config: `data:` of the config.
        task: Says what the target means.
        seed: The run's seed, by which samples are parted unless `split.seed` is given.
        trust: Names of packages whose code may be imported.
        files: Knows what image files hold from earlier runs; None to read all of them.
        head: Names that the network's pretrained head gives its outputs, in their order.

    Raises:
        DataError: a source, a column or a value is not what the config says.
    """
    config, tables, rules = join_targets(config, _read_tables(config, trust), tuple(head))
    inputs, target = choose_columns(
        config, tables["train"].columns, needs_target=not isinstance(task, ImportTask)
    )
    named = config.model_copy(update={"inputs": inputs, "target": target})
    sources, is_image = sources_of(config), image_columns(config, inputs)
    for part, (source, key) in sources.items():
        choose_columns(named, tables[part].columns, needs_target=target is not None)
        settled = settle_columns(tables[part], inputs, target, is_image, source, key)
        tables[part] = identified(settled, files)
    tables, on_images = read_alike(tables, seed)
    on_sources = [note for table in tables.values() for note in table.notes]
    parts, classes, on_labels = labelled(tables, inputs, target, task, rules)
    kinds = {
        name: kind_of(column, name, config) for name, column in parts["train"].table.columns.items()
    }
    if config.split is None:
        notes = notes_on_copies(list(parts.values()))
        refuse_unseen_labels(parts, classes, None)
    else:
        parts, notes = parted(parts["train"], config.split, task, classes, seed)
    notes = (*on_sources, *on_images, *notes, *on_labels, *notes_on_parts(parts, classes, task))
    sizes = {part: len(raw.table) for part, raw in parts.items()}
    facts = DataFacts(inputs, target, classes, tuple(map(redacted, notes)), sizes, kinds)
    identity = DataIdentity.of({name: raw.hashes for name, raw in parts.items()}, classes)
    return OpenedData(parts["train"], parts.get("validation"), parts.get("test"), facts, identity)


def prepare_data(
    opened: OpenedData,
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    seed: int,
    trust: Collection[str],
    views: int | None = None,
    hang_timeout_s: float | None = None,
    tokens: TokenStore | None = None,
) -> PreparedData:
    """Do what is deterministic to every sample, and leave the rest for the fetch.

    Args:
        opened: The raw parts.
        config: `data:` of the config.
        preprocessing: What the network was pretrained with.
        seed: The run's seed, where random transforms begin.
        trust: Names of packages whose code may be imported.
        views: How many draws of the random transforms a training sample has; None for a new one
            in every epoch.
        hang_timeout_s: Seconds after which a process that prepares batches counts as hung.
        tokens: Where tokens are kept from run to run; None for nowhere.

    Raises:
        DataError: a transform fails, or samples end as something that no batch can hold.
    """
    train_steps, other_steps = _plans(config, opened.train.table, preprocessing, trust)
    train = opened.train

    def evaluated(part: RawPart | None) -> Samples | None:
        if part is None:
            return None
        columns, later = run_steps(part.table, other_steps, tokens)
        told = identity_of(later, config.evaluation_transforms or (), seed, trust)
        return Samples(columns, part.target, later=later, identity=told, seed=seed, views=1)

    columns, later = run_steps(train.table, train_steps, tokens)
    if views is not None and not later:
        raise DataError(
            "no transform is random: every sample has one view",
            hint="leave it out",
            key=("prefix", "views"),
        )
    samples = Samples(
        columns,
        train.target,
        later=later,
        identity=identity_of(later, config.transforms or (), seed, trust),
        seed=seed,
        views=views,
        workers=config.workers,
        hang_timeout_s=hang_timeout_s,
    )
    return PreparedData(
        samples,
        evaluated(opened.validation),
        evaluated(opened.test),
        opened.facts,
        opened.identity,
        (*(tokens.notes if tokens is not None else ()), *_notes_on_cut(train_steps, other_steps)),
    )


def _notes_on_cut(*plans: Sequence[PlannedStep]) -> list[str]:
    """Tell how many texts were cut, a line for each step that cuts."""
    steps = {id(each.step): each.step for plan in plans for each in plan}
    found = [
        step.cut.note(step.columns, step.max_length)
        for step in steps.values()
        if isinstance(step, Tokenize)
    ]
    return [note for note in found if note is not None]


def prepare_inputs(
    rows: Mapping[str, Sequence[Any]],
    config: DataConfig,
    facts: DataFacts,
    preprocessing: Preprocessing,
    *,
    trust: Collection[str],
    places: Places = THE_INPUT,
) -> Samples:
    """Bring raw values to what the network takes, as evaluation does; there is no target.

    Args:
        rows: For each of `facts.inputs` its values: texts, numbers or arrays, images as paths,
            encoded bytes or PIL images. Other columns are passed over.
        config: `data:` of the config that the network was trained with.
        facts: What the training data said about itself.
        preprocessing: What the network was pretrained with.
        trust: Names of packages whose code may be imported.
        places: Where the rows stand, for messages.

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
    table = Table(columns, torch.arange(lengths.pop()), places.files[0], places=places)
    _, steps = _plans(config, table, preprocessing, trust)
    finished, later = run_steps(table, steps)
    return Samples(finished, None, later=later)


def _read_tables(config: DataConfig, trust: Collection[str]) -> dict[str, Table]:
    wanted = columns_in_use(config)
    return {
        part: open_source(source, trust, key, wanted)
        for part, (source, key) in sources_of(config).items()
    }


def _plans(
    config: DataConfig, table: Table, preprocessing: Preprocessing, trust: Collection[str]
) -> tuple[list[PlannedStep], list[PlannedStep]]:
    """Return the steps of training, and those of evaluation and prediction."""

    def planned(nodes: Sequence[Transform], key: str) -> list[PlannedStep]:
        return plan_steps(nodes, table.columns, preprocessing, trust=trust, key=("data", key))

    if config.transforms is None:
        train = usual_steps(table.columns, preprocessing)
    else:
        train = planned(config.transforms, "transforms")
    if config.evaluation_transforms is None:
        return train, [step for step in train if not step.random]
    return train, planned(config.evaluation_transforms, "evaluation_transforms")
