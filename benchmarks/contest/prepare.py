"""Write down the work of a case as this project would do it, for those who do it by hand."""

from collections.abc import Iterator
from pathlib import Path

import torch

from contest.cases import Case
from contest.inputs import read_splits
from contest.job import Group, Job, Phase
from finetune.config.loader import load_config
from finetune.config.model import ImportLayer, TransformersLayer
from finetune.config.run import RunConfig
from finetune.config.source_keys import ArraysSource, SklearnSource, TextFolderSource
from finetune.data.batches import sample_order, seed_for
from finetune.data.opening import open_data
from finetune.freezing.apply import held_modules
from finetune.importing import package_path
from finetune.train.loop import Trainer
from finetune.train.spans import Span, walk
from finetune.train.wire import build_trainer

_AT_ONCE = 256


def prepare(case: Case, folder: Path, *, overrides: tuple[str, ...], check: bool = False) -> Job:
    """Write the job of a case into a folder, and return it.

    Args:
        case: The case.
        folder: Where the job goes.
        overrides: Changes to the case's config.
        check: Compare the inputs read by hand with those of this project, bit by bit.
    """
    # nothing of it may lie in the cache before anything is measured
    config = load_config(case.config, overrides=[*overrides, "prefix=off"], trust=case.trust)
    trainer = build_trainer(config, folder / "never-written")
    opened = open_data(config.data, config.task, seed=config.seed, trust=config.trust)
    parts = {"train": opened.train, "validation": opened.validation, "test": opened.test}
    timeline = trainer.timeline
    epochs = -(-timeline.total_steps // timeline.steps_per_epoch)
    num_samples = len(trainer.splits.train)
    job = Job(
        network=case.network,
        config=str(case.config),
        trust=case.trust,
        overrides=overrides,
        classes=len(opened.facts.classes or ()),
        epochs=epochs,
        batch_size=config.train.batch_size,
        options=_options(case, config),
        phases=tuple(_phases(trainer, case)),
        groups=_groups(trainer),
        rows={name: part.table.rows for name, part in parts.items() if part is not None},
        orders=torch.stack([sample_order(num_samples, config.seed, e) for e in range(epochs)]),
        rates=_rates(trainer),
        seeds=torch.tensor(
            [seed_for("step", config.seed, s) for s in range(trainer.timeline.total_steps)]
        ),
        start={
            name: parameter.detach().clone()
            for name, parameter in trainer.model.named_parameters()
            if name in trainer.plan.ever_trained
        },
    )
    job.save(folder)
    if check:
        _compare(job, trainer)
    return job


def _options(case: Case, config: RunConfig) -> dict[str, object]:
    source, first = config.data.source, config.model.layers[0]
    plain = [node.model_dump() for node in config.data.transforms or ()]
    match source:
        case TextFolderSource():
            assert isinstance(first, TransformersLayer)
            weights = package_path(first.path, key=())
            return {
                "data": str(package_path(source.path, key=())),
                "encoding": source.encoding,
                "errors": source.errors,
                "weights": str(weights),
                "max_length": plain[0]["max_length"],
            }
        case ArraysSource():
            assert isinstance(first, ImportLayer)
            assert first.weights is not None
            weights = package_path(first.weights.path, key=())
            return {
                "data": str(package_path(source.path, key=())),
                "weights": str(weights),
                "size": list(plain[0]["size"]),
                "mean": plain[3]["mean"][0],
                "std": plain[3]["std"][0],
            }
        case SklearnSource():
            return {"scale": 16}
    raise ValueError(f"{case.name}: no hand-written reader for {source}")


def _spans(trainer: Trainer) -> Iterator[Span]:
    timeline, phases = trainer.timeline, trainer.plan.phases
    return walk((phase.until for phase in phases), timeline.epochs, timeline.total_steps)


def _phases(trainer: Trainer, case: Case) -> Iterator[Phase]:
    names = [name for name, _ in trainer.model.named_parameters()]
    spans = _spans(trainer)
    for phase, span, border in zip(trainer.plan.phases, spans, case.boundaries, strict=True):
        first_epoch, rest = divmod(span.began, trainer.timeline.steps_per_epoch)
        assert rest == 0, "phases of the contest begin with an epoch"
        yield Phase(
            first_epoch=first_epoch,
            trained=tuple(name for name in names if name not in phase.frozen),
            held=tuple(held_modules(trainer.model, phase.frozen, phase.modules)),
            border=border,
        )


def _groups(trainer: Trainer) -> tuple[Group, ...]:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return tuple(
        Group(
            tuple(names[id(parameter)] for parameter in slot["params"]),
            {"weight_decay": slot["weight_decay"], "eps": slot["eps"]},
        )
        for slot in trainer.optimizer.param_groups
    )


def _rates(trainer: Trainer) -> torch.Tensor:
    timeline, total = trainer.timeline, trainer.timeline.total_steps
    rates = [
        timeline.rates.at(
            step,
            phase.rates,
            (span.began, span.ends) if phase.restarts_schedule else (0, total),
            total,
            epochs=timeline.epochs,
        )
        for phase, span in zip(trainer.plan.phases, _spans(trainer), strict=True)
        for step in range(span.began, span.ends)
    ]
    return torch.tensor(rates, dtype=torch.float64)


def _compare(job: Job, trainer: Trainer) -> None:
    """Stop where inputs read by hand are not those of this project."""
    splits = read_splits(job)
    for name, split in splits.items():
        samples = getattr(trainer.splits, name)
        for rows in torch.arange(len(split)).split(_AT_ONCE):
            ours, theirs = samples.fetch(rows), split.batch(rows)
            same = torch.equal(ours.target, split.target[rows]) and all(
                torch.equal(values, theirs[column]) for column, values in ours.inputs.items()
            )
            if not same:
                raise AssertionError(f"{job.network}: other {name} samples by hand")
