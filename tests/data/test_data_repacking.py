"""Rows of a batch that share sequences: every token at its new place, once."""

from dataclasses import replace

import numpy as np
import pytest

from selecttkd_jax.data import Rows, eval_batches, lay_out_sequences, share_sequences

LENGTH = 12


@pytest.fixture
def batch():
    """Rows of several lengths and a filler, with labels of which some are hidden."""
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(1, 50, count).astype(np.int32) for count in (5, 12, 3, 4, 7, 1))
    response = tuple(np.arange(len(row)) >= 1 for row in tokens)
    (batch,) = eval_batches(Rows(tokens, response, LENGTH, read=len(tokens)), 7, LENGTH)
    return replace(batch, labels=np.where(batch.labels > 40, np.int32(-1), batch.labels))


def test_rows_share_as_few_sequences_as_they_fill(batch):
    assert share_sequences(batch) == [[1], [4, 0], [3, 2, 5]]  # the filler goes nowhere


def test_every_token_keeps_what_is_known_of_it(batch):
    shared = share_sequences(batch)
    layout = lay_out_sequences(batch, shared, 4)
    packed = layout.pack(batch)
    for sequence, rows in enumerate(shared):
        start = 0
        for number, row in enumerate(rows, 1):
            count = int((batch.segment_ids[row] != 0).sum())
            place = slice(start, start + count)
            for name in ("input_ids", "labels", "loss_mask", "positions"):
                np.testing.assert_array_equal(getattr(packed, name)[sequence, place], getattr(batch, name)[row, :count])
            assert (packed.segment_ids[sequence, place] == number).all()
            start += count
        assert not packed.segment_ids[sequence, start:].any() and not packed.loss_mask[sequence, start:].any()
    assert not packed.segment_ids[3].any() and not packed.input_ids[3].any()
    assert packed.loss_mask.sum() == batch.loss_mask.sum()
    assert packed.input_ids.dtype == np.int32 and packed.loss_mask.dtype == bool


def test_what_is_known_of_a_row_stands_at_each_of_its_tokens(batch):
    layout = lay_out_sequences(batch, share_sequences(batch), 3)
    skews = np.arange(1, 8, dtype=np.float32)
    spread = layout.spread(skews)
    assert spread.dtype == np.float32
    np.testing.assert_array_equal(spread[1], [5] * 7 + [1] * 5)
    np.testing.assert_array_equal(spread[2], [4] * 4 + [3] * 3 + [6] + [0] * 4)


def test_numbers_of_tokens_move_with_them(batch):
    layout = lay_out_sequences(batch, share_sequences(batch), 3)
    numbers = np.random.default_rng(1).random(batch.input_ids.shape).astype(np.float32)
    moved = layout.move(numbers)
    np.testing.assert_array_equal(moved[1], [*numbers[4, :7], *numbers[0, :5]])


def test_tokens_know_where_they_stood_in_the_whole_batch(batch):
    """Of which these are the second half of the rows."""
    shared = share_sequences(batch)
    packed = lay_out_sequences(batch, shared, 3, part=1, parts=2).pack(batch)
    rows = len(batch.input_ids)
    whole = np.concatenate([np.zeros_like(batch.input_ids), batch.input_ids])
    assert packed.unpacked.rows == 2 * rows
    real = packed.segment_ids != 0
    assert packed.unpacked.places[real].min() >= rows * LENGTH
    np.testing.assert_array_equal(whole.reshape(-1)[packed.unpacked.places][real], packed.input_ids[real])
