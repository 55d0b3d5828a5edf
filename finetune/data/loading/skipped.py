"""Tell which samples were skipped because they cannot be read."""

from finetune.data.batches import Samples


def note_on_skipped(samples: Samples) -> str | None:
    """Return a note on how many samples of a split were skipped, with an example; None if none."""
    if not samples.skipped:
        return None
    count, first = len(samples.skipped), next(iter(samples.skipped.values()))
    name = f"{samples.name} " if samples.name else ""
    were = "was" if count == 1 else "were"
    told = f"samples {were} skipped (data.on_error: skip), such as: {first}"
    return f"{count:,} of {len(samples):,} {name}{told}"


def first_skipped(samples: Samples) -> str | None:
    """Return the line for the first sample of a split that is skipped; None if none is."""
    for reason in samples.skipped.values():
        return f"a {samples.name} sample is skipped (data.on_error: skip): {reason}"
    return None
