"""Which steps samples go through: those of training, and those of evaluation and prediction."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from finetune.config.data import DataConfig
from finetune.config.fitted_keys import StandardizeTransform
from finetune.config.transform_keys import Mix, Transform, VisionTransform
from finetune.data.samples import Prepared
from finetune.data.steps.cut_texts import CutTexts
from finetune.data.steps.fitted_steps import FittedStep
from finetune.data.steps.fitting import as_in_training, with_kept
from finetune.data.steps.learnt import Learnt
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.transforms import PlannedStep, Step, plan_steps, usual_transforms
from finetune.data.steps.vision import Vision, ignoring_outside
from finetune.errors import Key
from finetune.models.preprocessing import Preprocessing


class SampleSteps(NamedTuple):
    """The steps that are applied to samples."""

    train: list[PlannedStep]
    other: list[PlannedStep]
    """Steps of evaluation and prediction."""
    left_out: list[PlannedStep]
    """Training steps left out of `other` because they are random, without the config saying so."""


def plan_sample_steps(
    config: DataConfig,
    columns: Mapping[str, Prepared],
    preprocessing: Preprocessing,
    trust: Collection[str],
    fit: Callable[[Sequence[PlannedStep]], list[PlannedStep]],
) -> SampleSteps:
    """Return the steps of training, and those of evaluation and prediction.

    `fit` gives the steps of training what they keep of the training samples.
    """

    def planned(nodes: Sequence[Transform], keys: Sequence[Key]) -> list[PlannedStep]:
        # The stepper mixes, after the samples are made.
        alone = [(n, key) for n, key in zip(nodes, keys, strict=True) if not isinstance(n, Mix)]
        nodes, keys = [node for node, _ in alone], [key for _, key in alone]
        return plan_steps(nodes, columns, preprocessing, trust=trust, keys=keys)

    def keys_below(key: str, nodes: Sequence[Transform]) -> list[Key]:
        return [("data", key, position) for position in range(len(nodes))]

    if config.transforms is None:
        usual = usual_transforms(columns, preprocessing)
        train = planned(usual, [("data", "inputs")] * len(usual))
    else:
        train = planned(config.transforms, keys_below("transforms", config.transforms))
    train = fit(train)
    if (own := config.evaluation_transforms) is None:
        # A random evaluation would give another figure at every call.
        random = [step for step in train if step.random]
        return SampleSteps(train, [step for step in train if not step.random], random)
    other = planned(own, keys_below("evaluation_transforms", own))
    return SampleSteps(train, as_in_training(other, train), [])


def kept_by_run(fitted: Sequence[Learnt]) -> Callable[[Sequence[PlannedStep]], list[PlannedStep]]:
    """Return a function that gives steps what a run has kept of its training samples."""
    return partial(with_kept, kept=fitted)


def with_ignored_borders(steps: SampleSteps, mask: str | None) -> SampleSteps:
    """Return steps that bring pixels without a class into a mask, where they bring in any."""
    if mask is None:
        return steps

    def ignoring(each: PlannedStep) -> PlannedStep:
        if not isinstance(each.step, Vision) or mask not in each.step.along:
            return each
        assert isinstance(each.node, VisionTransform)
        return replace(each, step=ignoring_outside(each.step, each.node))

    return SampleSteps(*([ignoring(each) for each in some] for some in steps))


def counting_anew(steps: Sequence[PlannedStep]) -> list[PlannedStep]:
    """Return steps that count from zero: those of a predictor serve many calls."""
    return [replace(each, step=_counting(each.step)) for each in steps]


def _counting(step: Step) -> Step:
    """Return a step that counts from zero what it cuts, fills, or does not know."""
    match step:
        case Tokenize():
            return replace(step, cut=CutTexts())
        case FittedStep():
            return step.with_figures(step.learnt)
    return step


def notes_on_scales(steps: SampleSteps) -> list[str]:
    """Return a note on each column that evaluation scales otherwise than training; or nothing."""
    there, here = _scales(steps.train), _scales(steps.other)
    return [
        f"column {name!r}: training has {_named(there.get(name))}, evaluation and prediction have "
        f"{_named(here.get(name))}, so the network gets numbers of another size; steps that scale "
        "belong in data.evaluation_transforms, too"
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]


def _scales(plan: Sequence[PlannedStep]) -> dict[str, list[str]]:
    """Return the steps that scale each column, as text."""
    found: dict[str, list[str]] = {}
    for step in (each.step for each in plan):
        match step:
            case Vision(name="Normalize", transform=transform):
                told = f"Normalize (mean {_short(transform.mean)}, std {_short(transform.std)})"
                found.setdefault(step.column, []).append(told)
            case FittedStep(node=StandardizeTransform()):
                for name in step.columns:
                    found.setdefault(name, []).append("standardize")
    return found


def _short(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers[:3])


def _named(steps: Sequence[str] | None) -> str:
    return ", then ".join(steps) if steps else "no step that scales it"


def notes_on_texts(*plans: Sequence[PlannedStep]) -> list[str]:
    """Return notes on texts that are cut or empty, for each step that meets any."""
    # By identity: training and evaluation share steps, and each must be reported once.
    steps = {id(each.step): each.step for plan in plans for each in plan}
    return [
        note
        for step in steps.values()
        if isinstance(step, Tokenize)
        for note in step.cut.notes(step.columns, step.max_length)
    ]
