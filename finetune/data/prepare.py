"""Turn parts into samples that can be fetched; transforms are done now, or left for then."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from finetune.config.data import DataConfig
from finetune.config.transform_keys import Transform
from finetune.data.batches import Samples
from finetune.data.identify.identity import DataIdentity
from finetune.data.identify.parts_alike import as_trained, unlike_training
from finetune.data.images import Images
from finetune.data.loading.random_steps import naming_left_out, note_on_other_shapes
from finetune.data.loading.ready import Fetching, samples_from
from finetune.data.memory_budget import MemoryBudget
from finetune.data.opening import DataFacts, OpenedData, open_data as open_data
from finetune.data.parts.epoch_order import EpochOrder
from finetune.data.parts.parting import RawPart
from finetune.data.samples import ForLoss
from finetune.data.steps.aligned_answers import with_answers
from finetune.data.steps.aligned_tags import refuse_words_without_tokens, with_tags
from finetune.data.steps.fitted_notes import fitted_of, notes_on_figures, notes_on_met
from finetune.data.steps.fitting import fitted_on
from finetune.data.steps.learnt import Learnt
from finetune.data.steps.pipeline import Outcome, run_steps
from finetune.data.steps.sample_steps import (
    SampleSteps,
    kept_by_run,
    notes_on_scales,
    notes_on_texts,
    plan_sample_steps,
    with_ignored_borders,
)
from finetune.data.steps.step_facts import identity_of
from finetune.data.steps.tokens import TokenStore
from finetune.data.steps.transforms import PlannedStep
from finetune.data.steps.vision import Vision
from finetune.data.table import Numbers, Table
from finetune.data.targets.loss_columns import (
    as_numbers,
    masks_among,
    notes_on_unmoved,
    refuse_unmoved_boxes,
    refuse_unmoved_masks,
)
from finetune.errors import DataError
from finetune.models.declared import TensorSpec
from finetune.models.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Every part as samples that can be fetched."""

    train: Samples
    validation: Samples | None
    test: Samples | None
    facts: DataFacts
    identity: DataIdentity
    order: EpochOrder
    """Which training samples every epoch draws."""
    changes: tuple[str, ...] = ()
    """See `OpenedData`."""
    notes: tuple[str, ...] = ()
    """Lines to report to the user on stored tokens, cut texts and unequal shapes."""
    automatic: tuple[Transform, ...] = ()
    """Steps that the network's pretraining asks for, as config nodes, if the config names none."""
    raw_validation: Table | None = None
    """The validation samples before any transform, for people to look at."""

    @property
    def notes_on_all(self) -> tuple[str, ...]:
        """Lines to report to the user about the data; `plan` and `train` print all of them."""
        return (*self.facts.notes, *self.notes)

    @property
    def parts(self) -> dict[str, Samples]:
        """The samples by part, those of training first."""
        others = {"validation": self.validation, "test": self.test}
        return {"train": self.train} | {n: part for n, part in others.items() if part is not None}

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each column of a training batch, without the batch axis."""
        return self.train.specs


def evaluation_samples(
    part: RawPart,
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    seed: int,
    trust: Collection[str],
    batch_size: int,
    hang_timeout_s: float | None,
    fitted: Sequence[Learnt] = (),
    tokens: TokenStore | None = None,
    name: str = "",
    like: RawPart | None = None,
    specs: Mapping[str, TensorSpec] = MappingProxyType({}),
) -> tuple[Samples, list[str]]:
    """Return the samples of one part as evaluation sees them, and notes on cut texts.

    Those of a run's own training part have the random steps of training.

    Args:
        part: Raw inputs and targets.
        config: `data:` of the config.
        preprocessing: What the network was pretrained with.
        seed: The run's seed.
        trust: Names of packages whose code may be imported.
        batch_size: Samples of a batch.
        hang_timeout_s: Seconds after which a process that makes batches counts as hung.
        fitted: What the fitted steps of the run have kept.
        tokens: Store that keeps tokens from run to run; None for no store.
        name: `train`, `validation` or `test`; empty for data that is no part of a run.
        like: The training part of the same data, whose columns decide which steps are made; None
            for a part whose columns are already of the kinds that training had.
        specs: Shape and dtype of the columns of training.

    Raises:
        DataError: a transform fails, or no batch can hold the resulting samples.
    """
    columns = (like or part).table.columns
    steps = plan_sample_steps(config, columns, preprocessing, trust, kept_by_run(fitted))
    steps = with_ignored_borders(steps, part.mask)
    notes: list[str] = []
    skips = config.on_error == "skip"
    pads = preprocessing.pads_images
    fetching = Fetching(
        config.workers, None, batch_size, hang_timeout_s, seed, skips=skips, pads=pads
    )
    making = _Making(steps, fetching, trust, notes.append, tokens)
    return _samples(part, making, name, specs), [
        *notes,
        *notes_on_texts(steps.other),
        *notes_on_met(steps.other),
    ]


class _Making(NamedTuple):
    """What is common to the samples of all parts."""

    steps: SampleSteps
    fetching: Fetching
    trust: Collection[str]
    tell: Callable[[str], None]
    tokens: TokenStore | None = None


def _samples(
    part: RawPart,
    making: _Making,
    name: str = "",
    specs: Mapping[str, TensorSpec] = MappingProxyType({}),
) -> Samples:
    """Return the samples of one part; those of training see random steps, all others do not.

    Args:
        part: Raw inputs and targets.
        making: What is common to all parts.
        name: `train`, `validation` or `test`.
        specs: Shape and dtype of the columns of training, for another part of the same data.
    """
    steps = making.steps
    planned, left_out = (steps.train, []) if name == "train" else (steps.other, steps.left_out)
    with naming_left_out(left_out):
        for_loss = _for_loss(part, planned)
        # Targets that move with an image are columns of its sample while the steps run.
        table = replace(part.table, columns={**part.table.columns, **for_loss.made})
        refuse_words_without_tokens(table, [each.step for each in planned])
        outcome = run_steps(table, planned, making.tokens, making.fetching.budget)
        outcome, for_loss = with_tags(outcome, for_loss, table, making.tell, name)
        outcome, for_loss = with_answers(outcome, for_loss, table, making.tell, name)
        outcome = outcome._replace(columns=as_trained(outcome.columns, specs))
        return samples_from(
            outcome,
            for_loss,
            fetching=making.fetching,
            identity=_identity(outcome, planned, making.trust, making.fetching.seed),
            place=part.table.without_columns().place,
            name=name,
            tell=making.tell,
        )


def _for_loss(part: RawPart, planned: Sequence[PlannedStep]) -> ForLoss:
    """Return the columns for the loss; those that steps move along are made with the inputs.

    Raises:
        DataError: a step moves sequences.
    """
    steps = [each.step for each in planned if isinstance(each.step, Vision)]
    names = {name for step in steps for name in step.along}
    made: dict[str, Numbers | Images] = {}
    for name, column in part.for_loss.columns.items():
        # Masks in files are read at every fetch, like the images that they are of.
        if isinstance(column, Images):
            made[name] = column
        elif name in names and isinstance(column, Numbers):
            made[name] = as_numbers(column)
        elif name in names:
            raise DataError(f"column {name!r} holds lists, which do not move with an image")
    return ForLoss(part.target_name, part.for_loss.columns, made)


def _identity(
    outcome: Outcome, planned: Sequence[PlannedStep], trust: Collection[str], seed: int
) -> str:
    """Return what tells the steps of every fetch from others; the seed counts if they draw."""
    # Finished columns are hashed by their contents, whatever steps have made them.
    if not outcome.made:
        return ""
    nodes = [each.node for each in planned]
    left = [*outcome.once, *outcome.drawn]
    return identity_of(left, nodes, seed if outcome.drawn else None, trust)


def prepare_data(
    opened: OpenedData,
    config: DataConfig,
    preprocessing: Preprocessing,
    *,
    seed: int,
    trust: Collection[str],
    views: int | None = None,
    batch_size: int = 32,
    hang_timeout_s: float | None = None,
    tokens: TokenStore | None = None,
    fitted: Sequence[Learnt] = (),
    fit_on: Table | None = None,
) -> PreparedData:
    """Return all parts as samples: deterministic steps are done, the others left for each fetch.

    Args:
        opened: The raw parts.
        config: `data:` of the config.
        preprocessing: What the network was pretrained with.
        seed: The run's seed, also for random transforms.
        trust: Names of packages whose code may be imported.
        views: Number of draws of the random transforms per training sample; None draws a new one
            in every epoch.
        batch_size: Samples of a batch.
        hang_timeout_s: Seconds after which a process that prepares batches counts as hung.
        tokens: Store that keeps tokens from run to run; None for no store.
        fitted: What the fitted steps of the run have kept, if it has begun.
        fit_on: The training samples that steps are fitted on; those of `opened` if left out.

    Raises:
        DataError: a transform fails, or no batch can hold the resulting samples.
    """
    for_loss = opened.train.for_loss.columns
    masks = masks_among(for_loss, opened.train.table.columns)
    # Before any step runs: a mask that is left behind would train without an error.
    refuse_unmoved_masks(config, masks)
    refuse_unmoved_boxes(config, opened.train.boxes)
    table = opened.train.table if fit_on is None else fit_on
    # Figures of a run stay: fitted anew on data that changed, they would move its inputs.
    fit = kept_by_run(fitted) if fitted else partial(fitted_on, table=table)
    steps = plan_sample_steps(config, opened.train.table.columns, preprocessing, trust, fit)
    steps = with_ignored_borders(steps, opened.train.mask)
    _refuse_idle_views(views, steps.train)
    notes: list[str] = []
    # `0` says that nothing is to be kept, which then needs no line of its own
    budget = MemoryBudget.of(config.memory_gb) if config.memory_gb else None
    skips = config.on_error == "skip"
    pads = preprocessing.pads_images
    fetching = Fetching(
        config.workers, budget, batch_size, hang_timeout_s, seed, views, skips, pads
    )
    making = _Making(steps, fetching, trust, notes.append, tokens)
    # Training first: the other parts must have its shapes and types.
    train = _samples(opened.train, making, "train")
    _refuse_idle_skips(opened.train, skips=skips)
    others = {"validation": opened.validation, "test": opened.test}
    made = {
        name: _samples(part, making, name, train.specs)
        for name, part in others.items()
        if part is not None
    }
    unlike = [
        note
        for other in made.values()
        for note in unlike_training(train.specs, other, may_differ=pads)
    ]
    on_steps = (
        *(tokens.notes if tokens is not None else ()),
        *notes_on_texts(steps.train, steps.other),
        *notes_on_unmoved(config, for_loss, masks),
        *_notes_on_steps(
            steps, train, opened.train.table, None if fitted else len(table), may_differ=pads
        ),
    )
    return PreparedData(
        train,
        made.get("validation"),
        made.get("test"),
        replace(opened.facts, fitted=tuple(one.learnt for one in fitted_of(steps.train))),
        opened.identity,
        opened.order,
        opened.changes,
        (*on_steps, *unlike, *dict.fromkeys(notes)),
        tuple(each.node for each in steps.train) if config.transforms is None else (),
        None if opened.validation is None else opened.validation.table,
    )


def _notes_on_steps(
    steps: SampleSteps,
    train: Samples,
    table: Table,
    num_fitted_on: int | None,
    *,
    may_differ: bool,
) -> list[str]:
    """Return notes on fitted steps, and on images that evaluation sees in another shape.

    Args:
        steps: The steps of all parts.
        train: The training samples.
        table: Their raw columns.
        num_fitted_on: How many samples steps were fitted on; None if the run has kept figures.
        may_differ: Whether the network takes images of different sizes.
    """
    left_out = [] if may_differ else steps.left_out
    return [
        *notes_on_scales(steps),
        *notes_on_figures(steps.train, num_fitted_on),
        *notes_on_met(steps.train, steps.other),
        *note_on_other_shapes(train, table, steps.other, left_out, row=train.first_row),
    ]


def _refuse_idle_views(views: int | None, steps: Sequence[PlannedStep]) -> None:
    """Raise `DataError` if `cache.views` is given, and all views of a sample would be equal."""
    if views is not None and not any(each.random for each in steps):
        raise DataError(
            "no transform is random: every sample has one view",
            hint="leave it out",
            key=("cache", "views"),
        )


def _refuse_idle_skips(part: RawPart, *, skips: bool) -> None:
    """Raise `DataError` if samples shall be skipped, and none has an image."""
    columns = (*part.table.columns.values(), *part.beside.values())
    if skips and not any(isinstance(column, Images) for column in columns):
        raise DataError(
            "has no effect: only images are skipped, and there are none",
            hint="leave it out; a recording or a row that cannot be read is always an error",
            key=("data", "on_error"),
        )
