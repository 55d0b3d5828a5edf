"""Answer frozen calls for samples of other data, where stores have rows of the same samples.

A sample is known by a digest of all that the network gets of it. The first batch of each shape runs
all layers, and so does the first one with rows of each store: only if its rows are those stored,
and its outputs the same with its frozen calls answered, bit by bit, are others like it answered.

Letters: B samples of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import Shape, digests_of, without_padding
from finetune.activations.find.boundary import Boundary
from finetune.activations.replay import Constants, Replay
from finetune.activations.verdicts import Verdicts
from finetune.bits import all_same_bits, same_bits
from finetune.data.batches import Batch, Split
from finetune.disk import reason_of
from finetune.preserved import preserved
from finetune.store.store import Store, StoreError
from finetune.structure import tensors_in
from finetune.train.after.sample_index import Found, SampleIndex

_AHEAD = 3
"""Batches that may be compared beyond the number of those that were answered."""

Run = Callable[[Mapping[str, Tensor]], Any]
"""Calls the network with the inputs of a batch."""


class _Known(NamedTuple):
    """A batch of known samples."""

    batch: Batch
    rows: Mapping[str, Tensor]
    shape: Shape
    constants: Constants
    """Constants of that shape."""
    stores: set[int]
    """Numbers of the stores that the rows are of."""
    names: set[str]
    """Names of the verdicts: of the shape, with rows of each store and origin."""


class KnownSampleRows:
    """Runs a network on batches; frozen calls are answered where all samples are known.

    Args:
        model: The network, in evaluation mode. Until `close`, `forward` of frozen modules is
            replaced.
        boundary: Its boundary.
        stores: Stores with rows at this boundary, closed by `close`.
        tell: Receives a line for each shape of batches that is not answered.
    """

    def __init__(
        self,
        model: nn.Module,
        boundary: Boundary,
        stores: Sequence[Store],
        tell: Callable[[str], None],
    ) -> None:
        self.num_asked = 0
        """Samples of all batches so far."""
        self.num_answered = 0
        """Those whose frozen calls were answered."""
        self._num_compared = self._num_answered_batches = 0
        self._is_unreadable = False
        self._model, self._stores, self._tell = model, stores, tell
        self._index = SampleIndex(stores, tell)
        # In memory: the store of a number may be another one next time.
        self._verdicts = Verdicts(None, "")
        self._constants: dict[str, Constants] = {}
        self._compared_stores, self._told = set[int](), set[str]()
        self._replay = Replay(model, boundary)
        self._replay.install()

    def close(self) -> None:
        """Restore every module's own `forward`, and close the stores."""
        self._replay.remove()
        for store in self._stores:
            store.close()

    def outputs(self, samples: Split, batch: Batch, run: Run) -> Any:
        """Return the network's outputs for a batch of `samples`.

        Args:
            samples: Tell the shape of the batch.
            batch: The batch, on the device of the network.
            run: Calls the network.
        """
        self.num_asked += len(batch)
        if (known := self._known_or_told(samples, batch)) is None:
            return run(batch.inputs)
        is_tried = known.stores <= self._compared_stores
        is_tried = is_tried and all(name in self._verdicts for name in known.names)
        if is_tried and self._replay.can_answer(known.constants):
            self.num_answered += len(batch)
            self._num_answered_batches += 1
            with self._replay.answering(known.rows, known.shape, known.constants):
                return run(batch.inputs)
        # A comparison takes longer than a pass. Texts have many shapes, few of which come again.
        if self._num_compared >= _AHEAD + self._num_answered_batches:
            return run(batch.inputs)
        self._num_compared += 1
        outputs, fault = self._compared(known, run)
        self._note(known, fault)
        return outputs

    def _known_or_told(self, samples: Split, batch: Batch) -> "_Known | None":
        """Return what `_known` does; None from the first error of a store on, which is told."""
        if self._is_unreadable:
            return None
        try:
            return self._known(samples, batch)
        except (StoreError, OSError) as error:
            self._is_unreadable = True
            reason = error.in_one_line if isinstance(error, StoreError) else reason_of(error)
            self._tell(f"activation cache: stored rows are not used from here on: {reason}")
            return None

    def _known(self, samples: Split, batch: Batch) -> "_Known | None":
        """Return a batch with its stored rows; None if one is missing, or known not to be exact."""
        if (places := self._index.find(digests_of(batch.inputs, samples.padded))) is None:
            return None
        shape = Shape.of(samples, batch.indices)
        # Kernels may differ where gradients are on, and in inference mode.
        mode = f"{shape}, {torch.is_grad_enabled()}, {torch.is_inference_mode_enabled()}"
        origins = zip(places.stores.tolist(), places.origins.tolist(), strict=True)
        names = {f"{mode}, rows of {store} {origin}" for store, origin in origins}
        is_inexact = any(name in self._verdicts and self._verdicts[name] for name in names)
        if is_inexact or (rows := self._rows(places, shape)) is None:
            return None
        constants = self._constants.setdefault(mode, Constants(mode, self._verdicts))
        return _Known(batch, rows, shape, constants, {*places.stores.tolist()}, names)

    def _note(self, known: "_Known", fault: str | None) -> None:
        """Remember whether batches like a compared one are exact; tell the user if they are not."""
        for name in known.names:
            # Of rows of several origins nobody knows which ones are at fault: they may be tried
            # again apart.
            if fault is None or len(known.names) == 1:
                self._verdicts.add(name, fault)
        if fault is None:
            self._compared_stores |= known.stores
        elif fault not in self._told:
            self._told.add(fault)
            self._tell(
                f"activation cache: some batches of {known.shape} run all layers although their "
                f"samples are known: {fault}"
            )

    @property
    def line(self) -> str:
        """What was answered, in words."""
        return (
            f"activation cache: {self.num_answered:,} of {self.num_asked:,} samples were answered "
            "from stored rows, the frozen layers ran for the others"
        )

    def _compared(self, known: "_Known", run: Run) -> tuple[Any, str | None]:
        """Run all layers on a batch; return outputs, and why its rows may not be used, or None."""
        batch, shape, constants = known.batch, known.shape, known.constants
        # Copies, since the network may change its inputs in place.
        copies = {column: values.clone() for column, values in batch.inputs.items()}
        with self._replay.recording(shape, constants) as recorded:
            outputs = run(batch.inputs)
        fault = self._fault(recorded, known.rows, copies)
        if fault is None:
            # Further passes must not count: a network may draw random numbers, or count batches.
            with preserved(self._model, buffers=True, attributes=True, random=0):
                fault = self._fault_of_answers(known, run, outputs, copies)
        return outputs, fault

    def _fault_of_answers(
        self, known: "_Known", run: Run, outputs: Any, copies: dict[str, Tensor]
    ) -> str | None:
        """Return why a batch may not be answered that has the rows stored, or None.

        Args:
            known: The batch.
            run: Calls the network.
            outputs: The network's own outputs for it.
            copies: Its inputs; may be changed.
        """
        shape, constants = known.shape, known.constants
        # A sample may be at another place of a batch than where its row was stored.
        turned = {column: values.flip(0) for column, values in copies.items()}
        with self._replay.recording(shape) as recorded:
            run({column: values.clone() for column, values in turned.items()})
        rows = {name: row.flip(0) for name, row in known.rows.items()}
        if (fault := self._fault(recorded, rows, turned)) is not None:
            return fault
        with self._replay.answering(known.rows, shape, constants):
            answered = tensors_in(run(copies))
        same = all_same_bits(tensors_in(outputs), answered)
        return None if same else "the outputs would be others"

    def _fault(
        self,
        recorded: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
    ) -> str | None:
        """Return why stored rows do not take the place of those just recorded, or None."""
        stored = self._replay.boundary.stored
        if recorded.keys() != stored.keys():
            return "the network calls other layers for them"
        for name, leaf in stored.items():
            now = without_padding(recorded[name], inputs) if leaf.ragged else recorded[name]
            if not same_bits(now, rows[name]):
                return "this machine rounds a sample otherwise there than where its row was stored"
        return None

    def _rows(self, places: Found, shape: Shape) -> dict[str, Tensor] | None:
        """Return the rows of some samples by name; None if one turns out damaged."""
        parts, order = list[dict[str, Tensor]](), list[np.ndarray[Any, Any]]()
        is_ragged = any(leaf.ragged for leaf in self._replay.boundary.stored.values())
        for number, store in enumerate(self._stores):
            which = np.flatnonzero(places.stores == number)
            rows = torch.from_numpy(places.rows[which])
            if not store.has(rows).all():
                return None
            if len(which):
                parts.append(store.read(rows, shape.length if is_ragged else None))
                order.append(which)
        back = torch.from_numpy(np.concatenate(order).argsort())
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
