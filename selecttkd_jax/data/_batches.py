"""Batches: rows padded on the right, the causal shift, and a seeded, resumable, per-host order.

The shift lives here and nowhere else: logits at position t predict `labels[t]`, the token at t + 1.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data._order import shuffle_rows
from selecttkd_jax.data._rows import Rows

# What a position in packed batches says of their sequences' length, and no other does.
PACKED_INTO = "packed into"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unpacked:
    """Where the tokens of rows that share sequences stand in a batch where none does.

    Attributes:
        places: row * T + slot, counted through all rows of the whole batch; of padding anything; int32 [B, T].
        rows: How many rows that batch has.
    """

    places: Any
    rows: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of rows, or of sequences in which rows are packed. Padding has id 0, segment 0 and no loss.

    Attributes:
        input_ids: What the model reads, int32 [B, T].
        labels: The token at the next position, int32 [B, T].
        loss_mask: True where `labels` is a token to learn, bool [B, T].
        positions: Of each token in its row, from 0; int32 [B, T].
        segment_ids: The number of a token's row in its sequence, from 1; 0 for padding; int32 [B, T].
        unpacked: Of a batch whose rows were put together: where its tokens stood. None of any other.
    """

    input_ids: Any
    labels: Any
    loss_mask: Any
    positions: Any
    segment_ids: Any
    unpacked: Unpacked | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Responses:
    """Two answers to the same prompts.

    Attributes:
        teacher: Rows with the teacher's answers.
        student: Rows with the student's.
        teacher_alpha: A skew for each of the teacher's, [B], in place of the divergence's own; None: its own.
        student_alpha: The same for the student's.
    """

    teacher: Batch
    student: Batch
    teacher_alpha: Any = None
    student_alpha: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Text that a policy wrote some steps ago, and how each of its tokens did; float32 [B, T], 0 where no loss is.

    Attributes:
        rows: The text.
        old_log_prob: log q(label) of the student that wrote it.
        importance: That student's probability of the label over the one with which it was drawn.
        advantage: By how much the label did better than others.
    """

    rows: Batch
    old_log_prob: Any
    importance: Any
    advantage: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithCorpus:
    """Rows of any kind, and rows of a corpus that are learned from along with them.

    Attributes:
        rows: A `Batch` or `Rollouts`.
        corpus: As many rows.
    """

    rows: Any
    corpus: Batch


def batch_shapes(batch_size: int, max_length: int) -> Batch:
    """The shapes of a whole batch, as a `Batch` of `jax.ShapeDtypeStruct`s."""
    ids = jax.ShapeDtypeStruct((batch_size, max_length), np.int32)
    mask = jax.ShapeDtypeStruct((batch_size, max_length), np.bool_)
    return Batch(input_ids=ids, labels=ids, loss_mask=mask, positions=ids, segment_ids=ids)


class BatchIterator(Iterator[Batch]):
    """An endless or finite iterator of batches that can be stopped and resumed exactly; see `make_batches`."""

    def __init__(self, dataset: Any, indices: Any, identity: dict[str, int]):
        self._indices = indices
        self._identity = identity
        self._iterator = iter(dataset)

    def __next__(self) -> Batch:
        return next(self._iterator)

    def list_rows(self, number: int) -> list[int]:
        """The rows of a whole batch by their number, both counted from 0: for messages."""
        return [int(index) for index in self._indices[number]]

    def get_state(self) -> dict[str, Any]:
        """The position in the data, as a dictionary that JSON can hold. It is the same on every process."""
        return {**self._identity, "position": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`, with any number of processes.

        Raises:
            InputError: The state belongs to other rows, another seed or another batch size.
        """
        check_state(state, self._identity)
        self._iterator.set_state(state["position"])


def make_batches(
    rows: Rows,
    batch_size: int,
    max_length: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> BatchIterator:
    """Makes shuffled batches of this process's share of each global batch.

    The order is one stream of rows, shuffled anew each epoch from `seed`; every row appears once per epoch, and a
    batch may hold the end of one epoch and the start of the next. Rows of several sources with weights are mixed, each
    source in its own shuffled order (`join_rows`). Process p of P takes the p-th part of every global batch, so the
    global order does not depend on P.

    Args:
        rows: Tokenised rows.
        batch_size: Rows in a global batch.
        max_length: T of the batches, in tokens.
        seed: Of the shuffle.
        process_index: This process's number p.
        process_count: Number P of processes.
        epochs: Passes over the rows; None goes on for ever. The very last batch is filled with all-masked rows.

    Returns:
        An iterator of `Batch` holding numpy arrays of `batch_size / process_count` rows.

    Raises:
        InputError: An option is out of range, or rows are longer than `max_length`.
    """
    import grain

    # Options that fit each other.
    check_fit(rows, batch_size, max_length)
    part = check_share(batch_size, seed, process_index, process_count)
    if epochs is not None:
        check_at_least("epochs", epochs, 1)

    # This process's part of each global batch, as a grain data set.
    def local_batch(indices: Sequence[int]) -> Batch:
        return collate(rows, [[index] for index in indices[part]], batch_size // process_count, max_length)

    by_batch = shuffle_rows(rows, seed, epochs).batch(batch_size, drop_remainder=False, batch_fn=list)
    # The rows are in memory: reader threads would only contend for the interpreter.
    dataset = by_batch.map(local_batch).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return BatchIterator(dataset, by_batch, {"seed": seed, "batch_size": batch_size, "rows": rows.fingerprint})


def eval_batches(rows: Rows, batch_size: int, max_length: int) -> list[Batch]:
    """Batches in the rows' order, each row once; the last one is filled with all-masked rows.

    Args:
        rows: Tokenised rows.
        batch_size: B of every batch.
        max_length: T of every batch, in tokens.

    Returns:
        The batches, holding numpy arrays.

    Raises:
        InputError: An option is out of range, or rows are longer than `max_length`.
    """
    check_fit(rows, batch_size, max_length)
    alone = [[index] for index in range(len(rows))]
    starts = range(0, len(rows), batch_size)
    return [collate(rows, alone[start : start + batch_size], batch_size, max_length) for start in starts]


def check_share(batch_size: int, seed: int, process_index: int, process_count: int) -> slice:
    """A process's part of each global batch; raises InputError where batches cannot be shared so."""
    check_at_least("process_count", process_count, 1)
    if batch_size % process_count:
        raise InputError(f"batch_size must be a multiple of the number of processes, {process_count}; got {batch_size}")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index must be in [0, {process_count}), got {process_index}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in [0, 2**32), got {seed}")
    local_size = batch_size // process_count
    return slice(process_index * local_size, (process_index + 1) * local_size)


def check_state(state: dict[str, Any], identity: dict[str, int]) -> None:
    """Raises InputError unless a saved position is one in the same batches."""
    for name, expected in ({PACKED_INTO: None} | identity).items():
        if state.get(name) != expected:
            raise InputError(
                f"the saved data position has {name} = {state.get(name)}, this run has {expected}; "
                "resume with the same data and options, or start a new run"
            )


def check_fit(rows: Rows, batch_size: int, max_length: int) -> None:
    """Raises InputError unless there are rows, and each fits into a sequence."""
    check_at_least("batch_size", batch_size, 1)
    longest = int(rows.lengths.max(initial=0))
    if longest > max_length:
        raise InputError(f"max_length is {max_length}, but a row has {longest} tokens; use one max_length for both")
    if not longest:
        raise InputError("there are no rows to make batches of")


def collate(rows: Rows, sequences: Sequence[Sequence[int]], batch_size: int, length: int) -> Batch:
    """A batch of sequences, each of the rows with these indices, one behind the other; the rest is padding."""
    input_ids = np.zeros((batch_size, length), np.int32)
    labels = np.zeros((batch_size, length), np.int32)
    loss_mask = np.zeros((batch_size, length), bool)
    positions = np.tile(np.arange(length, dtype=np.int32), (batch_size, 1))
    segment_ids = np.zeros((batch_size, length), np.int32)
    for sequence, indices in enumerate(sequences):
        start = 0
        for segment, index in enumerate(indices, 1):
            tokens = rows.tokens[index]
            end = start + len(tokens)
            input_ids[sequence, start:end] = tokens
            # A row's last token has no label: the next one is another row's.
            labels[sequence, start : end - 1] = tokens[1:]
            loss_mask[sequence, start : end - 1] = rows.response[index][1:]
            positions[sequence, start:end] = np.arange(len(tokens))
            segment_ids[sequence, start:end] = segment
            start = end
    return Batch(input_ids, labels, loss_mask, positions, segment_ids)
