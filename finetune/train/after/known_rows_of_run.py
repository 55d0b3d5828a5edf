"""Open the rows that the activation cache has for the network of a trained run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.activations.estimate import Use, facts_at, probed
from finetune.activations.key import prefix_key
from finetune.config.run import RunConfig
from finetune.data.batches import Batch, Samples
from finetune.freezing.apply import apply_mask, mask_given_back
from finetune.freezing.rows import rows_of
from finetune.models.declared import Network
from finetune.models.shapes import first_line
from finetune.store.directory import cache_root, claim_as_it_is, entries
from finetune.store.store import Store, StoreError
from finetune.train.after.inference import Inference
from finetune.train.after.known_rows import KnownSampleRows, Run
from finetune.train.build import plan_of
from finetune.train.cache_use import cache_facts

_FEWEST = 240
"""Fewer samples are not worth the trial passes that find the frozen prefix."""


@dataclass(slots=True)
class KnownToRun:
    """Runs the network of a trained run; its frozen layers not for samples with stored rows.

    The stores are looked for when the first samples come.

    Args:
        config: The config of the run.
        model: Its network.
        inference: How it is called.
        device: Where it is.
        tell: Receives lines for the user.
    """

    config: RunConfig
    model: Network
    inference: Inference
    device: torch.device
    tell: Callable[[str], None]
    _rows: KnownSampleRows | None = None
    _was_opened: bool = False

    def outputs(self, samples: Samples, batch: Batch, run: Run) -> Any:
        """Return the network's outputs for a batch of `samples`; `run` calls the network."""
        if not self._was_opened:
            self._was_opened = True
            if self._may_be_used(samples):
                self._rows = self._opened_or_told(samples)
        if self._rows is None:
            return run(batch.inputs)
        return self._rows.outputs(samples, batch, run)

    def _opened_or_told(self, samples: Samples) -> KnownSampleRows | None:
        """Open the stored rows; None without any, or if an error keeps them from being used."""
        try:
            return self._opened(samples)
        except Exception as error:  # noqa: BLE001 - code of the user may raise anything
            # What is wrong with a sample is told where the network runs, as without the cache.
            self.tell(f"activation cache: stored rows are not used: {first_line(error)}")
            return None

    def close(self) -> None:
        """Tell how many samples were answered, and close the stores."""
        if self._rows is not None:
            if self._rows.num_asked:
                self.tell(self._rows.line)
            self._rows.close()
            self._rows = None

    def _may_be_used(self, samples: Samples) -> bool:
        """Tell whether stored rows would be those of this network, and may save time."""
        config, inference = self.config, self.inference
        is_called_alike = not (inference.is_compiled or inference.is_channels_last)
        precision = config.inference.precision or config.train.precision
        return (
            config.cache.use == "auto"
            # Rounded rows would give other bits than the network alone.
            and config.cache.store_dtype is None
            and is_called_alike
            and precision == config.train.precision
            and not config.train.compile
            and self.device.type == "cpu"
            and len(samples) >= _FEWEST
            and samples.is_even
        )

    def _opened(self, samples: Samples) -> KnownSampleRows | None:
        """Find the frozen prefix, and open all stores with rows of it; None without any."""
        root, model = cache_root(), self.model
        labelled = [one for one in entries(root) if one.meta and "prefix" in one.meta.facts]
        trained = {rows_of(name)[0] for name in plan_of(self.config, model).ever_trained}
        frozen = {name for name, _ in model.named_parameters()} - trained
        if not labelled or not frozen:
            return None
        use = Use(
            splits={"known": samples},
            batch_sizes={},
            autocast=self.inference.precision.autocast,
            facts=cache_facts(self.config, self.device),
            tell=self.tell,
            store_dtype=None,
        )
        with _differentiable(model, frozen):
            boundary, _ = probed(model, samples, use)
            key = prefix_key(model, facts_at(model, boundary, use)) if boundary.stored else ""
        metas = [one.meta for one in labelled if one.meta and one.meta.facts["prefix"] == key]
        with ExitStack() as opened:
            stores = list[Store]()
            for meta in metas:
                try:
                    store = Store.of(meta, claim_as_it_is(root, meta), limit_bytes=0.0)
                except StoreError as error:
                    # It may be gone by now, or damaged: the others may still be used.
                    self.tell(f"activation cache: a store is not used: {error.in_one_line}")
                    continue
                stores.append(opened.enter_context(closing(store)))
            rows = KnownSampleRows(model, boundary, stores, self.tell) if stores else None
            # All went well: the stores stay open until the rows are closed.
            opened.pop_all()
        return rows


@contextmanager
def _differentiable(model: nn.Module, frozen: set[str]) -> Iterator[None]:
    """Freeze exactly `frozen` in the block, with gradients on: they show what is frozen."""
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        mask_given_back(model),
    ):
        apply_mask(model, frozen)
        yield


@dataclass(frozen=True, slots=True)
class KnownForward:
    """The forward interface of an evaluation whose samples may have stored rows."""

    model: nn.Module
    known: KnownToRun

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut, on the device of the network."""
        return samples.fetches(cuts, epoch, self.known.device)

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on a batch."""
        inference = self.known.inference
        return self.known.outputs(samples, batch, lambda inputs: inference(**inputs))

    def close(self) -> None:
        """Close the stores."""
        self.known.close()
