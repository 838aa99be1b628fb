"""The causal shift, the order of rows, and exact resumption."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data._rows import Rows

LENGTH = 9


def make_rows(count, first=100):
    """Row i is first+i, then i's own numbers; its last two tokens carry loss, so a batch shows which rows it holds."""
    tokens = tuple(np.array([first + i, *range(10 * i, 10 * i + 2 + i % 5)], np.int32) for i in range(count))
    response = tuple(np.arange(len(row)) >= len(row) - 2 for row in tokens)
    return Rows(tokens, response, LENGTH, read=count)


def row_numbers(batches):
    """Which row each line of the batches holds; None for a filling row."""
    lines = [
        (ids[0], segments[0])
        for batch in batches
        for ids, segments in zip(batch.input_ids, batch.segment_ids, strict=True)
    ]
    return [int(head) - 100 if segment else None for head, segment in lines]


def test_labels_are_the_next_tokens():
    rows = Rows((np.array([5, 6, 7, 8], np.int32),), (np.array([False, False, True, True]),), 6, read=1)
    (batch,) = data.eval_batches(rows, batch_size=2, max_length=6)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0, 0], [0] * 6]
    assert batch.labels.tolist() == [[6, 7, 8, 0, 0, 0], [0] * 6]
    # Position 1 reads 6 and predicts 7, the first response token; the last token predicts nothing.
    assert batch.loss_mask.tolist() == [[False, True, True, False, False, False], [False] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 0, 0], [0] * 6]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"int32", "bool"}


def test_a_model_that_copies_the_next_token_has_no_loss_and_a_shift_by_one_shows():
    """A causal model knowing the text i, i+1, i+2, ... predicts input + 1; every learned label must agree."""
    rows = Rows(tuple(np.arange(i, i + 7, dtype=np.int32) for i in (3, 20)), (np.arange(7) >= 4,) * 2, 7, read=2)
    (batch,) = data.eval_batches(rows, 2, 7)
    prediction = batch.input_ids + 1
    np.testing.assert_array_equal(batch.labels[batch.loss_mask], prediction[batch.loss_mask])
    assert batch.loss_mask.sum() == 6  # all three response tokens of both rows, none lost to the shift
    assert (np.roll(batch.labels, 1, axis=1) != prediction)[batch.loss_mask].all()


def test_a_row_as_long_as_the_batch_loses_no_response_token():
    rows = Rows((np.arange(1, 7, dtype=np.int32),), (np.arange(6) >= 3,), 6, read=1)
    (batch,) = data.eval_batches(rows, 1, 6)
    assert batch.labels[batch.loss_mask].tolist() == [4, 5, 6]


def test_batches_are_pytrees():
    (batch,) = data.eval_batches(make_rows(2), 2, LENGTH)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[:1], tree))(batch)
    assert isinstance(doubled, data.Batch) and doubled.input_ids.shape == (1, LENGTH)


def test_eval_batches_keep_the_order_and_fill_the_last():
    batches = data.eval_batches(make_rows(7), 3, LENGTH)
    assert row_numbers(batches) == [0, 1, 2, 3, 4, 5, 6, None, None]
    assert not batches[-1].loss_mask[1:].any()


@pytest.mark.parametrize("count", [1, 7, 12])
def test_every_row_appears_once_per_epoch(count):
    numbers = row_numbers(data.make_batches(make_rows(count), 4, LENGTH, seed=0, epochs=3))
    numbers, filling = numbers[: 3 * count], numbers[3 * count :]
    assert set(filling) <= {None} and len(filling) < 4
    epochs = [numbers[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count == 1 or len({tuple(epoch) for epoch in epochs}) == 3  # shuffled anew


def test_the_seed_sets_the_order():
    def order(seed):
        return row_numbers(data.make_batches(make_rows(50), 5, LENGTH, seed=seed, epochs=1))

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_global_order_does_not_depend_on_the_number_of_processes(process_count):
    rows = make_rows(10)
    whole = list(data.make_batches(rows, 6, LENGTH, seed=3, epochs=2))
    parts = [
        list(data.make_batches(rows, 6, LENGTH, seed=3, epochs=2, process_index=p, process_count=process_count))
        for p in range(process_count)
    ]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part[step] for part in parts])
        jax.tree.map(np.testing.assert_array_equal, batch, joined)


@pytest.mark.parametrize("taken", [0, 1, 4, 9])  # 10 rows, 3 a batch: mid-epoch, across an epoch, in the fourth
def test_resuming_is_exact(taken):
    rows = make_rows(10)
    whole = data.make_batches(rows, 3, LENGTH, seed=5)
    for _ in range(taken):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    expected = [next(whole) for _ in range(6)]
    resumed = data.make_batches(rows, 3, LENGTH, seed=5)
    resumed.set_state(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, batch, next(resumed))


def test_a_run_may_resume_with_another_number_of_processes():
    rows = make_rows(10)
    whole = data.make_batches(rows, 4, LENGTH, seed=5)
    for _ in range(3):
        next(whole)
    second = data.make_batches(rows, 4, LENGTH, seed=5, process_index=1, process_count=2)
    second.set_state(whole.get_state())
    assert row_numbers([next(second)]) == row_numbers([next(whole)])[2:]


def test_a_state_of_other_data_or_options_is_refused():
    state = data.make_batches(make_rows(10), 2, LENGTH, seed=5).get_state()
    for other, name in [
        (data.make_batches(make_rows(10, first=101), 2, LENGTH, seed=5), "rows"),
        (data.make_batches(make_rows(10), 4, LENGTH, seed=5), "batch_size"),
        (data.make_batches(make_rows(10), 2, LENGTH, seed=6), "seed"),
    ]:
        with pytest.raises(InputError, match=f"saved data position has {name}"):
            other.set_state(state)


def test_endless_batches_do_not_end():
    assert Counter(row_numbers(next(it) for it in [data.make_batches(make_rows(3), 3, LENGTH, 0)] * 20)) == {
        0: 20,
        1: 20,
        2: 20,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "process_count": 3}, "multiple of the number of processes, 3; got 4"),
        ({"process_count": 2, "process_index": 2}, "process_index must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"max_length": 4}, "max_length is 4, but a row has 7 tokens"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        data.make_batches(make_rows(5), **{"batch_size": 2, "max_length": LENGTH, "seed": 0} | options)
