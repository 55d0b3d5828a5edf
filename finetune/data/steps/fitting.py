"""Fit the steps of training that are computed from the training samples, or take a run's own.

Fitted on the training part alone: figures of validation or test samples would let the network know
something of what it is judged by.
"""

from collections.abc import Sequence
from dataclasses import replace

from finetune.data.samples import Columns
from finetune.data.steps.fitted_steps import FittedStep
from finetune.data.steps.learnt import Learnt
from finetune.data.steps.pipeline import TokenKeeping, at_once, mapped, typed_columns
from finetune.data.steps.transforms import Imported, PlannedStep, Stack, taken_by
from finetune.data.table import DECODED, Table
from finetune.errors import DataError


def fitted_on(planned: Sequence[PlannedStep], table: Table) -> list[PlannedStep]:
    """Return the steps, with what fitted ones compute from a table.

    Args:
        planned: The steps of training.
        table: The training samples before any step.

    Raises:
        DataError: a step cannot be fitted.
    """
    result = list(planned)
    numbers = [number for number, each in enumerate(planned) if isinstance(each.step, FittedStep)]
    if not numbers:
        return result
    columns = typed_columns(table, [each.step for each in planned])
    # Not beyond the last step that is fitted: nobody looks at what the others make.
    for number, each in enumerate(planned[: numbers[-1] + 1]):
        if not isinstance(step := each.step, FittedStep):
            columns = _after(each, columns, table)
            continue
        _refuse_changed(step, columns, planned[:number])
        step = step.fitted(columns, table.place)
        result[number] = replace(each, step=step)
        # A copy is applied here, so that the counts of the step itself begin at zero.
        columns = step.with_figures(step.learnt).whole(columns, table.place)
    return result


def with_kept(planned: Sequence[PlannedStep], kept: Sequence[Learnt]) -> list[PlannedStep]:
    """Return steps with what a run has kept of its training samples.

    Args:
        planned: The steps of training.
        kept: What each fitted step has kept, in their order.

    Raises:
        DataError: the run kept figures of other steps.
    """
    result = list(planned)
    fitted = [each for each in planned if isinstance(each.step, FittedStep)]
    waiting = iter(kept)
    for number, each in enumerate(planned):
        if isinstance(step := each.step, FittedStep):
            learnt = next(waiting, None)
            is_its_own = learnt is not None and learnt.type == step.node.type
            if learnt is None or not is_its_own or learnt.columns.keys() != {*step.columns}:
                raise DataError(
                    f"the run has kept nothing of {step.node.type} that was fitted in training; it "
                    f"has figures of {len(kept)} steps, the config names {len(fitted)}",
                    hint="evaluate and predict with the transforms that the run was trained with",
                    key=step.key,
                )
            result[number] = replace(each, step=step.with_figures(learnt))
    return result


def as_in_training(
    planned: Sequence[PlannedStep], training: Sequence[PlannedStep]
) -> list[PlannedStep]:
    """Return the steps of evaluation, with what the same steps of training have kept.

    Raises:
        DataError: training has no such step.
    """
    known = [each.step for each in training if isinstance(each.step, FittedStep)]
    result = list(planned)
    for number, each in enumerate(planned):
        if isinstance(step := each.step, FittedStep):
            same = next((one for one in known if one.node == step.node), None)
            if same is None:
                raise DataError(
                    f"{step.node.type} is fitted in training, and data.transforms has no such step",
                    hint="write the same step, with the same keys, into both lists",
                    key=step.key,
                )
            result[number] = replace(each, step=same)
    return result


def _after(each: PlannedStep, columns: Columns, table: Table) -> Columns:
    """Return the columns after a step, without those that only a fetch can make."""
    step = each.step
    taken = taken_by(step)
    if isinstance(step, Stack) and columns.keys() >= {*step.columns}:
        return at_once(table, columns, [step], TokenKeeping(None, None))[0]
    if taken is not None:
        return {name: column for name, column in columns.items() if name not in taken}
    # a step of the user's own may read and write any column
    is_whole = columns.keys() >= table.columns.keys()
    if each.random or not is_whole or any(isinstance(c, DECODED) for c in columns.values()):
        return {}
    return mapped(table, columns, [step])


def _refuse_changed(step: FittedStep, columns: Columns, before: Sequence[PlannedStep]) -> None:
    """Raise if a step takes a column that is made at every fetch, so that it cannot be fitted."""
    changed = next((name for name in step.columns if name not in columns), None)
    if changed is None:
        return
    own = any(isinstance(each.step, Imported) for each in before)
    raise DataError(
        f"{step.node.type} cannot be fitted on {changed!r} after "
        f"{'a transform of your own' if own else 'the steps before it'}",
        hint="put it before them: data.transforms run in the order in which they are written",
        key=step.key,
    )
