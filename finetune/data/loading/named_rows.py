"""Name row and file of the sample at fault when a batch raises an error."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune.data.batches import Batch, Samples
from finetune.errors import ModelError
from finetune.models.misfits import name_sample


@contextmanager
def rows_named(samples: Samples, batch: Batch) -> Iterator[None]:
    """In errors that the block raises about a sample, name its row instead of its batch position.

    Args:
        samples: The samples that the batch was fetched from.
        batch: The batch that the network runs on.

    Raises:
        ModelError: as raised in the block, with the sample's place in the data.
    """
    try:
        yield
    except ModelError as error:
        name_row(error, samples, batch)
        raise


def name_row(error: ModelError, samples: Samples, batch: Batch) -> None:
    """Name in an error the row of the sample that it is about, if it is about one.

    Args:
        error: As the network raised it; its text is changed.
        samples: The samples that the batch was fetched from.
        batch: The batch that the network ran on.
    """
    # A position in a shuffled batch says nothing to a person.
    if error.sample is not None and samples.place is not None:
        name_sample(error, samples.place(int(batch.indices[error.sample])))
