"""A checksum changes with every bit of a row, with the order of its tokens, and with its length."""

import numpy as np
import pytest

from finetune.store.row_index import EMPTY, Checksummer

ROW = np.array([3])


def sealed(row, *, ragged, key="k"):
    """Return the checksum of one row of tokens (T, bytes), alone in its store."""
    length = np.array([len(row) if ragged else 1])
    return Checksummer.of(key, [row.shape[1]], [ragged]).checksums(ROW, length, [row])[0]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 40])
def test_every_single_bit_counts(size):
    row = np.random.default_rng(0).integers(0, 256, (1, size), np.uint8)
    checksums = {sealed(row, ragged=False)}
    for bit in range(size * 8):
        flipped = row.copy()
        flipped[0, bit // 8] ^= 1 << bit % 8
        checksums.add(sealed(flipped, ragged=False))
    assert len(checksums) == size * 8 + 1


def test_two_flipped_signs_do_not_cancel():
    row = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    checksums = {sealed(row.view(np.uint8), ragged=False)}
    for first in range(64):
        for second in range(first):
            flipped = row.copy()
            flipped[0, [first, second]] *= -1
            checksums.add(sealed(flipped.view(np.uint8), ragged=False))
    assert len(checksums) == 64 * 63 // 2 + 1


def test_the_order_and_number_of_tokens_count():
    row = np.random.default_rng(0).integers(0, 256, (5, 8), np.uint8)
    zeros = np.zeros_like(row)
    rows = [row, row[::-1].copy(), row[[1, 0, 2, 3, 4]], row[:4], zeros, zeros[:4], zeros[:0]]
    assert len({sealed(tokens, ragged=True) for tokens in rows}) == len(rows)


def test_rows_of_many_lengths_are_sealed_together_as_alone():
    random = np.random.default_rng(0)
    checksummer = Checksummer.of("k", [8, 5], [True, False])
    rows, lengths = np.arange(6), np.array([0, 3, 0, 1, 7, 0])
    tokens = random.integers(0, 256, (11, 8), np.uint8)
    fixed = random.integers(0, 256, (6, 5), np.uint8)
    together = checksummer.checksums(rows, lengths, [tokens, fixed])
    ends = np.cumsum(lengths)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        block = [tokens[end - length : end], fixed[row : row + 1]]
        alone = checksummer.checksums(rows[row : row + 1], lengths[row : row + 1], block)
        assert alone == together[row]


def test_a_row_of_zeros_has_a_seal_and_stores_have_seals_of_their_own():
    zeros, ones = np.zeros((1, 8), np.uint8), np.ones((1, 8), np.uint8)
    assert sealed(zeros, ragged=False) != EMPTY
    assert sealed(ones, ragged=False, key="a") != sealed(ones, ragged=False, key="b")
