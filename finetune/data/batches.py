"""Batches, and the samples of a split that they are fetched from; order by seed and epoch.

Letters: N samples of a split, B samples of a batch, C classes, L tokens of the longest sample.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from finetune.data.samples import Prepared
from finetune.data.targets.token_targets import TokenTarget
from finetune.models.declared import TensorSpec

MASK = "attention_mask"
"""Name of the column that is 1 for tokens and 0 for padding, as in `transformers`."""


class Extent(NamedTuple):
    """How many tokens the samples of a batch have."""

    width: int
    """Number of tokens that all of them are padded to."""
    shortest: int
    """Number of tokens of the shortest one."""
    longest: int
    """Number of tokens of the longest one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples of a split, as tensors.

    Args:
        inputs: The network's input columns by name, each `(B, ...)`.
        target: Class numbers `(B,)` int64, label sets `(B, C)` float32, or numbers `(B, ...)`
            float32, depending on the task; masks `(B, H, W)` int64; tags `(B, L)` int64, padded
            with -100. None for prediction.
        indices: Positions of the samples in the split, `(B,)`.
        view: Number of the draw of the random transforms, if their number is limited.
        rows: Numbers of its rows in the activation cache, if its frozen calls will be answered with
            them; None if the network runs.
        columns: The columns of `data.loss_columns` by name, each `(B, ...)`.
        skipped: Samples that cannot be made, with the reason, by position in the split; another
            sample of the split stands in the place of each.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    indices: Tensor
    view: int = 0
    rows: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    skipped: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> Tensor:
        """Where a sample is the one that its index names, `(B,)` bool."""
        return torch.tensor([row not in self.skipped for row in self.indices.tolist()])

    def without_skipped(self) -> "Batch":
        """Return the batch without what stands in the place of skipped samples."""
        return self.at(self.is_whole.to(self.indices.device)) if self.skipped else self

    def at(self, kept: Tensor | slice) -> "Batch":
        """Return the samples of a slice, or where a mask `(B,)` is true."""
        inputs = {name: values[kept] for name, values in self.inputs.items()}
        target = None if self.target is None else self.target[kept]
        columns = {name: values[kept] for name, values in self.columns.items()}
        indices = self.indices[kept]
        return replace(self, inputs=inputs, target=target, indices=indices, columns=columns)

    def __len__(self) -> int:
        # Asked for several times a step: `len` of a tensor takes a dozen calls of torch's.
        return self.indices.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`."""
        if self.indices.device == torch.device(device):
            return self
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        target = None if self.target is None else self.target.to(device)
        columns = {name: values.to(device) for name, values in self.columns.items()}
        indices = self.indices.to(device)
        return replace(self, inputs=inputs, target=target, indices=indices, columns=columns)


def seed_for(*parts: str | int) -> int:
    """Return a seed of 63 bits that depends on all of `parts` and nothing else."""
    # Not `hash`, which differs from process to process.
    text = "\0".join(str(part) for part in parts)
    # 63 bits, so that the number is positive where seeds are signed.
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of samples in an epoch, a permutation `(N,)`.

    It depends only on the arguments; the global random state is neither used nor changed.
    """
    draw = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    return torch.randperm(num_samples, generator=draw)


def windows(order: Tensor, size: int, *, drop_last: bool) -> list[Tensor]:
    """Return `order` in windows of `size` samples; a shorter last one is dropped if asked."""
    cut = list(order.split(size))
    # With fewer samples than `size`, nothing is left; callers refuse such a run.
    return cut[:-1] if drop_last and cut and len(cut[-1]) < size else cut


class Split(Protocol):
    """The samples of one split, ready to be fetched as batches."""

    @property
    def name(self) -> str:
        """`train`, `validation` or `test`; empty for samples that are no split of a run."""
        ...

    @property
    def views(self) -> int | None:
        """How many draws of the random transforms a sample has, 1 without any.

        Epochs take turns. None where every epoch has a new one.
        """
        ...

    @property
    def padded(self) -> frozenset[str]:
        """Names of the columns that a batch pads; none where a step at every fetch makes tokens."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample; None where no column is padded, or nobody knows yet."""
        ...

    @property
    def has_shorter(self) -> bool:
        """Whether some samples end before the end of a batch that is as long as they get."""
        ...

    def __len__(self) -> int: ...

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how many tokens the samples at `indices` have in a batch: padded, least, most.

        None if there are no tokens, or if steps still to come may change their number.
        """
        ...

    def fetch(
        self,
        indices: Tensor | Sequence[int],
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return the samples at `indices` `(B,)` as a batch.

        The seed of a sample's random transforms depends only on the run's seed, the sample and the
        number of the draw, not on the other samples of the batch or the number of workers. The
        global random state is unchanged.

        Args:
            indices: Positions in the split.
            epoch: Epoch, which selects the draw of the random transforms: each of `views` draws in
                turn, or a new one in every epoch if `views` is None.
            blank: Columns that the caller does not read. They are filled with zeros of the usual
                shape.
            length: Number of tokens to pad columns of tokens to. By default the column's fixed
                length if it has one, else that of the longest sample in the batch.

        Raises:
            DataError: a sample cannot be made. The message names its row.
        """
        ...


class Samples(Split, Protocol):
    """One split as a run has it: what it knows besides its batches, and batches made in advance.

    `GatheredSamples` holds finished tensors; `MadeSamples` makes each sample as it is fetched.
    """

    @property
    def place(self) -> Callable[[int], str] | None:
        """Names a sample for a message: its row and file; None where nobody knows where it is."""
        ...

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each input column of a batch, without the batch axis."""
        ...

    @property
    def is_even(self) -> bool:
        """Whether one column alone tells beforehand how many tokens a sample has."""
        ...

    @property
    def image_sizes(self) -> frozenset[tuple[int, int]] | None:
        """Height and width of all images that a batch pads to its largest one.

        Empty where a batch pads no image; None where only making all samples would tell.
        """
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        ...

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        ...

    def lengths(self, indices: Tensor) -> Tensor | None:
        """Return how many tokens each of the samples has `(B,)`; None where `extent` is None."""
        ...

    def fetches(
        self, batches: Sequence[Tensor], epoch: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Fetch one batch after another, by processes where there are any.

        Steps that work on whole batches run on `device`, where the batch is.
        """
        ...

    def close(self) -> None:
        """End the processes that make batches, if any; the next fetch starts them again."""
        ...

    @property
    def first_row(self) -> int:
        """Position of the first sample that can be made."""
        ...

    @property
    def skipped(self) -> Mapping[int, str]:
        """Samples that could not be made until now, with the reason, by position."""
        ...

    @property
    def is_identified(self) -> bool:
        """Whether the contents of all files are known, so that `fingerprint` reads none."""
        ...

    def identify(self, tell: Callable[[str], None]) -> None:
        """Read all files whose contents are not known yet; `tell` receives lines for the user."""
        ...

    def fingerprint(self) -> str:
        """Hash the contents of all columns, targets too, and the steps done at every fetch."""
        ...


def blank_column(spec: TensorSpec, size: int) -> Tensor:
    """Return zeros of the shape that a column has in a batch of `size` samples."""
    return torch.zeros(size, *spec.shape, dtype=getattr(torch, spec.dtype))


def spec_of(sample: Tensor) -> TensorSpec:
    """Return shape and dtype of one sample."""
    return TensorSpec(tuple(sample.shape), str(sample.dtype).removeprefix("torch."))


def fingerprint_of(
    columns: Mapping[str, Prepared], target: Prepared | TokenTarget | None, identity: str
) -> str:
    """Hash columns, targets and what is done to them, as `Samples.fingerprint` returns it."""
    digest = blake2b(identity.encode(), digest_size=16)
    for name, column in columns.items():
        # The zero ends the name: `ab` and `c` must not give the bytes of `a` and `bc`.
        digest.update(name.encode() + b"\0" + column.fingerprint())
    if target is not None:
        digest.update(target.fingerprint())
    return digest.hexdigest()
