"""Packed batches: every row once and whole, nothing across rows, one order for any number of processes."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import _packing
from selecttkd_jax.data._packing import first_fit
from selecttkd_jax.data._rows import Rows

LENGTH = 32


def make_rows(count, seed=0):
    """Row i begins with i + 1, which is in no other place; its last tokens carry loss."""
    rng = np.random.default_rng(seed)
    tokens = tuple(
        np.concatenate([[i + 1], rng.integers(1000, 2000, rng.integers(1, LENGTH))]).astype(np.int32)
        for i in range(count)
    )
    response = tuple(np.arange(len(row)) >= max(1, len(row) // 2) for row in tokens)
    return Rows(tokens, response, LENGTH, read=count)


def read_back(batch):
    """The texts of a batch, each as its tokens, labels and mask, by its segment alone."""
    for ids, labels, mask, positions, segments in zip(
        batch.input_ids, batch.labels, batch.loss_mask, batch.positions, batch.segment_ids, strict=True
    ):
        assert not mask[segments == 0].any() and not ids[segments == 0].any()
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            assert positions[here].tolist() == list(range(here.sum()))
            yield ids[here], labels[here], mask[here]


def sequences_of_an_epoch(rows, seed):
    batches = data.pack_batches(rows, 1, LENGTH, seed)
    found = []
    while sum(len(texts) for texts in found) < len(rows):
        found.append(list(read_back(next(batches))))
    return found


@pytest.mark.parametrize("window", [1024, 7])
def test_each_epoch_has_every_row_once_and_whole(window, monkeypatch):
    monkeypatch.setattr(_packing, "WINDOW", window)
    rows = make_rows(40)
    epoch = sequences_of_an_epoch(rows, seed=3)
    found = [text for sequence in epoch for text in sequence]
    assert sorted(int(ids[0]) for ids, _, _ in found) == list(range(1, 41))
    for ids, labels, mask in found:
        row = int(ids[0]) - 1
        assert ids.tolist() == rows.tokens[row].tolist()
        # The last token predicts nothing: behind it another row begins.
        assert labels.tolist() == [*rows.tokens[row][1:], 0]
        assert mask.tolist() == [*rows.response[row][1:], False]
    assert len(epoch) < 30


def test_the_order_follows_the_seed_and_changes_with_the_epoch():
    rows = make_rows(40)
    orders = [[[int(ids[0]) for ids, _, _ in sequence] for sequence in sequences_of_an_epoch(rows, s)] for s in (1, 2)]
    assert orders[0] != orders[1]
    batches = data.pack_batches(rows, 1, LENGTH, 1)
    stream = [[int(ids[0]) for ids, _, _ in read_back(next(batches))] for _ in range(3 * len(orders[0]))]
    assert stream[: len(orders[0])] == orders[0] and stream[len(orders[0]) : 2 * len(orders[0])] != orders[0]
    # Also the third epoch has each row once.
    counts = Counter(row for sequence in stream for row in sequence)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_batches_of_one(process_count):
    rows = make_rows(50)
    whole = data.pack_batches(rows, 6, LENGTH, 3)
    parts = [
        data.pack_batches(rows, 6, LENGTH, 3, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for number in range(9):
        batch, pieces = next(whole), [next(part) for part in parts]
        together = np.concatenate([piece.input_ids for piece in pieces])
        np.testing.assert_array_equal(together, batch.input_ids)
        assert all(part.get_state() == whole.get_state() for part in parts)
        named = [int(ids[0]) - 1 for ids, _, _ in read_back(batch)]
        assert whole.list_rows(number) == named


@pytest.mark.parametrize("taken", [0, 3, 11])
def test_a_resumed_order_goes_on_where_it_stopped(taken):
    rows = make_rows(30)
    whole = data.pack_batches(rows, 4, LENGTH, 5)
    for _ in range(taken):
        next(whole)
    resumed = data.pack_batches(rows, 4, LENGTH, 5, process_index=1, process_count=2)
    resumed.set_state(json.loads(json.dumps(whole.get_state())))
    for batch, part in islice(zip(whole, resumed, strict=False), 8):
        np.testing.assert_array_equal(batch.input_ids[2:], part.input_ids)


def test_a_position_in_other_batches_is_refused():
    state = data.pack_batches(make_rows(10), 2, LENGTH, 5).get_state()
    for other, name in [
        (data.pack_batches(make_rows(10, seed=1), 2, LENGTH, 5), "rows"),
        (data.pack_batches(make_rows(10), 4, LENGTH, 5), "batch_size"),
        (data.pack_batches(make_rows(10), 2, LENGTH + 1, 5), "packed into"),
        (data.pack_batches(make_rows(10), 2, LENGTH, 6), "seed"),
    ]:
        with pytest.raises(InputError, match=f"has {name} = "):
            other.set_state(state)
    unpacked = data.make_batches(make_rows(10), 2, LENGTH, 5)
    with pytest.raises(InputError, match="packed into = None"):
        data.pack_batches(make_rows(10), 2, LENGTH, 5).set_state(unpacked.get_state())
    with pytest.raises(InputError, match="packed into = 32"):
        unpacked.set_state(state)
    with pytest.raises(InputError, match="a row has"):
        data.pack_batches(make_rows(10), 2, 3, 5)


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_first_fit_places_each_once_and_leaves_no_two_bins_half_empty(lengths, room):
    bins = first_fit(lengths, room)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in members) for members in bins]
    assert all(0 < load <= room for load in loads)
    # What opened a later bin did not fit into an earlier one.
    firsts = [lengths[members[0]] for members in bins]
    assert all(loads[i] + firsts[j] > room for j in range(len(bins)) for i in range(j))


def test_the_summary_says_how_full_sequences_are():
    tokens = tuple(np.full(count, 5, np.int32) for count in (8, 24, 16, 16))
    rows = Rows(tokens, tuple(np.arange(len(row)) > 0 for row in tokens), LENGTH, read=4)
    assert data.pack_batches(rows, 1, LENGTH, 0).summary() == (
        "packed: 2.0 rows share a sequence of 32 tokens and fill 100 % of it; one alone fills 50 %"
    )
