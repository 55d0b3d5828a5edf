"""Errors over a sample of a batch, told with the row and the file that the sample comes from."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune.data.batches import Batch, Samples
from finetune.errors import ModelError
from finetune.models.misfits import name_sample


@contextmanager
def rows_named(samples: Samples, batch: Batch) -> Iterator[None]:
    """Name the row of the sample at fault where the block raises over one.

    Args:
        samples: What the batch was fetched from.
        batch: What the network is run on.

    Raises:
        ModelError: as the block raised it, with the place of the sample in the data.
    """
    try:
        yield
    except ModelError as error:
        if error.sample is not None and samples.place is not None:
            name_sample(error, samples.place(int(batch.indices[error.sample])))
        raise
