"""Several predictors on the same samples; those over equal frozen prefixes share one pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.activations.batch_shapes import Shape, mask_of
from finetune.activations.replay import Constants, Replay
from finetune.activations.verdicts import Verdicts
from finetune.bits import all_same_bits
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, did_you_mean
from finetune.predict.predictor import Predictor, predictor_of
from finetune.predict.prefixes import FrozenPrefix, find_prefix, share_tensors
from finetune.predict.windowed import ReadyInputs
from finetune.structure import tensors_in
from finetune.tasks.records import PredictionRecord
from finetune.train.after.bases import Bases
from finetune.train.after.trained import load_run


@dataclass(frozen=True, slots=True)
class Head:
    """A predictor with its frozen prefix."""

    predictor: Predictor
    prefix: FrozenPrefix | None
    """None if it shares with no other run."""
    replay: Replay | None
    """Records the outputs of the prefix, or answers with those of another head."""
    alone: str
    """Why it has no prefix to share; empty if it has one."""

    @classmethod
    def of(cls, predictor: Predictor, others: Iterable["Head"] = ()) -> "Head":
        """Find the prefix of a predictor, and replace `forward` of its modules."""
        found = find_prefix(predictor, [one.prefix for one in others if one.prefix is not None])
        if isinstance(found, str):
            return cls(predictor, None, None, found)
        replay = Replay(predictor.model, found.boundary)
        replay.install()
        return cls(predictor, found, replay, "")

    def by_itself(self, why: str) -> "Head":
        """Return the head without its prefix, its network's own `forward` restored."""
        if self.replay is not None:
            self.replay.remove()
        return Head(self.predictor, None, None, why)


class Predictors:
    """Predictors by name. Call it with samples; made by `load_predictors`.

    Not for several threads at once: the frozen calls of a network are recorded or answered during
    a call.
    """

    def __init__(self) -> None:
        self._heads: Mapping[str, Head] = {}
        self.passes = 0
        """Frozen prefixes that were run so far, also those of runs that share none."""
        self.spared = 0
        """Passes through a frozen prefix that another run's pass has spared so far."""

    def __getitem__(self, name: str) -> Predictor:
        """Return one predictor."""
        return self._heads[name].predictor

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the runs."""
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)

    def __contains__(self, name: object) -> bool:
        return name in self._heads

    def now(self) -> dict[str, Predictor]:
        """Return the predictors of this moment, whatever is added or removed meanwhile."""
        return {name: head.predictor for name, head in self._heads.items()}

    def add(self, name: str, predictor: Predictor) -> None:
        """Add a predictor, or replace that of this name.

        If its frozen prefix is equal to that of another, it shares the tensors of the prefix: do
        not change them in place.
        """
        old = self._heads.get(name)
        if old is not None and old.predictor.model is predictor.model:
            old.by_itself("")
        others = [one for each, one in self._heads.items() if each != name]
        head = Head.of(predictor, others)
        # A head without a prefix has the key None, as all others without one have.
        twins = [one for one in others if _key(head) is not None and _key(one) == _key(head)]
        if twins:
            assert head.prefix is not None
            share_tensors(predictor.model, head.prefix, twins[0].predictor.model)
            # Two equal networks that share it have been tried with each other.
            alike = [
                one for one in twins if one.prefix and one.prefix.network == head.prefix.network
            ]
            if len(alike) < 2 and not _agree(twins[0], head):
                head = head.by_itself("a trial gave other bits than its own pass")
        # A new mapping: other threads may look at the names meanwhile. An old one of this name
        # stays until here: the name is never missing, also if the new one cannot be added.
        self._heads = {**self._heads, name: head}
        if old is not None and old.predictor.model is not predictor.model:
            old.by_itself("")

    def remove(self, name: str) -> None:
        """Remove a predictor, if there is one of this name; its network becomes as it was."""
        if (head := self._heads.get(name)) is not None:
            self._heads = {each: one for each, one in self._heads.items() if each != name}
            head.by_itself("")

    @property
    def shared(self) -> dict[str, tuple[str, ...]]:
        """Names of the runs that share a pass, by the name of the last module of their prefix."""
        found = [names for names in self._groups(tuple(self._heads)) if len(names) > 1]
        return {
            prefix.up_to: names
            for names in found
            if (prefix := self._heads[names[0]].prefix) is not None
        }

    def shares_with(self, name: str) -> tuple[str, ...]:
        """Return the other runs that share the pass of a run."""
        groups = self._groups(tuple(self._heads))
        return tuple(one for names in groups if name in names for one in names if one != name)

    def notes(self) -> list[str]:
        """Return a line for each group of runs that share a pass, and for each run that does not.

        The first begin with the names, the others with the name and the reason.
        """
        lines = []
        for names in self._groups(tuple(self._heads)):
            head = self._heads[names[0]]
            if head.prefix is None:
                lines.append(f"{names[0]} runs alone: {head.alone}")
            elif len(names) == 1:
                lines.append(f"{names[0]} runs alone: no other run has its frozen prefix")
            else:
                up_to = head.prefix.up_to
                lines.append(f"{', '.join(names)} share one pass up to {up_to}")
        return lines

    def __call__(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        names: Sequence[str] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> dict[str, list[PredictionRecord]]:
        """Return the predictions of each run for the same samples, in order.

        They have the bits that each predictor gives by itself for these samples.

        Args:
            inputs: As for a single predictor.
            names: Runs that predict; all if left out.
            tell: Receives lines on values that were converted or cut.

        Raises:
            DataError: a column is missing, or a value cannot be read.
            FinetuneError: there is no run of such a name.
        """
        wanted = tuple(dict.fromkeys(self if names is None else names))
        for name in wanted:
            if name not in self._heads:
                raise FinetuneError(f"no run {name!r}", hint=did_you_mean(name, self._heads))
        found = dict[str, list[PredictionRecord]]()
        for group in self._groups(wanted):
            found |= self._of_group(group, inputs, tell)
        return {name: found[name] for name in wanted}

    def _groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return names in groups that share a pass; a run alone is a group of one."""
        groups: dict[str, list[str]] = {}
        for name in names:
            head = self._heads[name]
            groups.setdefault(_key(head) or f" {name}", []).append(name)
        return [tuple(group) for group in groups.values()]

    def _of_group(
        self, names: Sequence[str], inputs: Any, tell: Callable[[str], None]
    ) -> dict[str, list[PredictionRecord]]:
        heads = {name: self._heads[name] for name in names}
        leader = heads[names[0]].predictor
        found: dict[str, list[PredictionRecord]] = {name: [] for name in names}
        ready = leader.preparing.prepare(inputs, tell=tell)
        for batch in leader.batches(ready):
            outputs = run_heads(list(heads.values()), batch, partial(_outputs, ready))
            self.passes += outputs.passes
            self.spared += len(heads) - outputs.passes
            for (name, head), output in zip(heads.items(), outputs.of_heads, strict=True):
                found[name] += head.predictor.read(output, batch, ready)
        return {name: list(ready.of_rows(records)) for name, records in found.items()}


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """What the networks of several heads returned for a batch."""

    of_heads: list[Any]
    passes: int
    """How often a prefix ran."""


def run_heads(
    heads: Sequence[Head], batch: Batch, run: Callable[[Predictor, Batch], Any]
) -> HeadOutputs:
    """Run the networks of heads with equal prefixes on a batch, the prefix once if it can be.

    Each gets the batch as copies: a network may change its inputs in place.

    Args:
        heads: The heads.
        batch: The batch.
        run: Runs the network of a predictor on a batch.
    """
    first, *others = heads
    shape, constants = _shape_of(batch), Constants("", Verdicts(None, ""))
    recording = None
    if others and first.replay is not None:
        recording = first.replay.recording(shape, constants)
    with recording or nullcontext({}) as rows:
        outputs = [run(first.predictor, _copied(batch))]
    if not rows:
        outputs += [run(one.predictor, _copied(batch)) for one in others]
        return HeadOutputs(outputs, len(heads))
    for one in others:
        assert one.replay is not None
        # Anew for each head: a network may change what it is given in place.
        copies = {name: row.clone() for name, row in rows.items()}
        with one.replay.answering(copies, shape, constants):
            outputs.append(run(one.predictor, _copied(batch)))
    return HeadOutputs(outputs, 1)


def _outputs(ready: ReadyInputs, predictor: Predictor, batch: Batch) -> Any:
    return predictor.outputs(batch, ready)


def _run_plain(predictor: Predictor, batch: Batch) -> Any:
    """Return the network's outputs for a batch that comes from nowhere, as in a trial."""
    return predictor.run.inference.outputs(batch.inputs)


def _shape_of(batch: Batch) -> Shape:
    """Return size and padded length of a batch."""
    mask = mask_of(batch.inputs)
    return Shape(len(batch), None if mask is None else mask.shape[1])


def _copied(batch: Batch) -> Batch:
    return replace(batch, inputs={name: each.clone() for name, each in batch.inputs.items()})


def _key(head: Head) -> str | None:
    return None if head.prefix is None else head.prefix.key


def _agree(twin: Head, head: Head) -> bool:
    """Tell whether a head gives the same bits when another one's pass answers its prefix.

    Tried on made-up batches of one and of several samples, with and without padding.
    """
    assert head.prefix is not None
    trial, size = head.prefix.trial, len(next(iter(head.prefix.trial.values())))
    # The last sample is the padded one. Kernels may round a sample otherwise in a batch of another
    # size.
    for kept in (slice(0, 1), slice(0, 3), slice(size - 1, size), slice(0, size)):
        inputs = {name: values[kept] for name, values in trial.items()}
        batch = Batch(inputs, None, torch.arange(len(next(iter(inputs.values())))))
        own = _run_plain(head.predictor, batch)
        shared = run_heads([twin, head], batch, _run_plain).of_heads[1]
        given = list(tensors_in(own))
        # Outputs without a tensor would agree whatever the networks do.
        if not given or not all_same_bits(given, list(tensors_in(shared))):
            return False
    return True


def load_predictors(
    run_dirs: Sequence[str | Path],
    *,
    trust: Sequence[str] = (),
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Predictors:
    """Load several runs; those over equal frozen prefixes share one pass, and its tensors.

        predictors = finetune.load_predictors(["runs/topic", "runs/tone"])
        predictions = predictors(["a text", "another"])    # {"topic": [...], "tone": [...]}

    Runs that begin with the same network, and freeze more of it than they train, have the same
    tensors of what is frozen: do not change them in place.

    Args:
        run_dirs: Folders of the runs; each is named as its folder.
        trust: Packages whose code their configs may import.
        batch_size: Samples of one forward pass; that of each config if left out.
        overrides: `key=value` each, for secrets that saved configs mask.

    Raises:
        FinetuneError: two folders have the same name.
        CheckpointError: a folder holds no usable run.
        TrustError: a config imports code that `trust` does not name.
        DataError: a tokenizer, or a transform, cannot be loaded.
    """
    predictors, bases = Predictors(), Bases() if len(run_dirs) > 1 else None
    for path in map(Path, run_dirs):
        if (name := path.resolve().name) in predictors:
            raise FinetuneError(
                f"two runs are named {name!r}",
                where=str(path),
                hint="rename the folder of one of them",
            )
        run = load_run(path, trust=trust, overrides=overrides, bases=bases)
        predictors.add(name, predictor_of(run, batch_size))
    return predictors
