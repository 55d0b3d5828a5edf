"""Tell sets of samples apart, whatever their order; without torch, for what reads run folders."""

from array import array
from hashlib import blake2b


def digest_in_any_order(rows: bytes, count: int) -> str | None:
    """Return a hash of samples, the same for any order of them.

    Args:
        rows: Their hashes, of 64 bits each.
        count: Number of samples. Of very many one hash over all is kept in place of theirs, which
            depends on their order: then None.
    """
    numbers = array("Q", rows)
    if len(numbers) != count:
        return None
    return blake2b(array("Q", sorted(numbers)).tobytes(), digest_size=16).hexdigest()
