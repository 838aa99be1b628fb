"""Packed batches: several rows share a sequence of `max_length` tokens, and none is split.

Most rows are shorter than the longest one, and what they leave of a sequence is computed for nothing: rows of GSM8K
fill 42 % of 512 tokens. The rows of an epoch are taken a window at a time, in their shuffled order; a window's rows go,
longest first, to the first sequence with room, and its sequences are shuffled in turn.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from selecttkd_jax._packed_rows import most_texts
from selecttkd_jax.data._batches import PACKED_INTO, Batch, check_fit, check_share, check_state, collate
from selecttkd_jax.data._order import shuffle_rows
from selecttkd_jax.data._rows import Rows

# Rows that are packed together. With more, hardly a sequence more is full; and a resumed run packs one window again.
WINDOW = 1024


class PackedBatches(Iterator[Batch]):
    """An endless iterator of packed batches that can be stopped and resumed exactly; see `pack_batches`."""

    def __init__(self, rows: Rows, batch_size: int, max_length: int, seed: int, part: slice):
        self._rows = rows
        self._batch_size = batch_size
        self._max_length = max_length
        self._seed = seed
        self._part = part
        self._identity = {"seed": seed, "batch_size": batch_size, "rows": rows.fingerprint, PACKED_INTO: max_length}
        self._lengths = rows.lengths
        self._order = shuffle_rows(rows, seed)
        self._set_position(0, 0)

    def __next__(self) -> Batch:
        sequences = list(islice(self._sequences, self._batch_size))[self._part]
        return collate(self._rows, sequences, len(sequences), self._max_length)

    def list_rows(self, number: int) -> list[int]:
        """The rows of a whole batch by their number, both counted from 0: for messages."""
        first = number * self._batch_size
        return [row for rows in islice(self._walk(0, 0), first, first + self._batch_size) for row in rows]

    def get_state(self) -> dict[str, Any]:
        """The position in the data, as a dictionary that JSON can hold. It is the same on every process."""
        return {**self._identity, "window": self._window, "sequence": self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`, with any number of processes.

        Raises:
            InputError: The state belongs to other rows, another seed or another shape of batches.
        """
        check_state(state, self._identity)
        self._set_position(state["window"], state["sequence"])

    def summary(self) -> str:
        """One line for the log: how many rows a sequence holds and how full it is, of the first window."""
        sequences = self._pack(0)
        rows = [row for sequence in sequences for row in sequence]
        tokens = int(self._lengths[rows].sum())
        return (
            f"packed: {len(rows) / len(sequences):.1f} rows share a sequence of {self._max_length} tokens and fill "
            f"{100 * tokens / (len(sequences) * self._max_length):.0f} % of it; one alone fills "
            f"{100 * self._rows.fill(self._max_length):.0f} %"
        )

    def sequences_an_epoch(self) -> int:
        """How many sequences the rows of the first epoch fill; the others differ by a few."""
        return sum(len(self._pack(window)) for window in range(self._windows_an_epoch()))

    def _set_position(self, window: int, sequence: int) -> None:
        self._window, self._sequence = window, sequence
        self._sequences = self._walk(window, sequence, follow=True)

    def _walk(self, window: int, sequence: int, *, follow: bool = False) -> Iterator[list[int]]:
        """The sequences from a position on, for ever; `follow`: this object's position goes along."""
        while True:
            packed = self._pack(window)
            while sequence < len(packed):
                sequence += 1
                if follow:
                    self._window, self._sequence = window, sequence
                yield packed[sequence - 1]
            window, sequence = window + 1, 0

    def _windows_an_epoch(self) -> int:
        return -(-len(self._rows) // WINDOW)

    def _pack(self, window: int) -> list[list[int]]:
        """A window's sequences. A window ends with its epoch, so that each epoch has every row once."""
        epoch, part = divmod(window, self._windows_an_epoch())
        first = part * WINDOW
        places = range(epoch * len(self._rows) + first, epoch * len(self._rows) + min(first + WINDOW, len(self._rows)))
        window_rows = [self._order[place] for place in places]
        sequences = first_fit(self._lengths[window_rows].tolist(), self._max_length)
        order = np.random.default_rng([self._seed, window]).permutation(len(sequences))
        return [[window_rows[place] for place in sequences[index]] for index in order]


def pack_batches(
    rows: Rows, batch_size: int, max_length: int, seed: int, *, process_index: int = 0, process_count: int = 1
) -> PackedBatches:
    """Makes shuffled batches of `batch_size` sequences of `max_length` tokens, with as many rows in each as fit.

    The rows come in the order of `make_batches`: every one once per epoch, or mixed by weight; a batch may hold the end
    of one epoch and the start of the next. Process p of P takes the p-th part of every global batch, so the global
    order does not depend on P.

    Args:
        rows: Tokenised rows.
        batch_size: Sequences in a global batch.
        max_length: T of the batches, in tokens.
        seed: Of both shuffles.
        process_index: This process's number p.
        process_count: Number P of processes.

    Returns:
        An iterator of `Batch` holding numpy arrays of `batch_size / process_count` sequences. A sequence's rows are its
        segments, from 1 on; their positions start at 0.

    Raises:
        InputError: An option is out of range, or rows are longer than `max_length`.
    """
    check_fit(rows, batch_size, max_length)
    part = check_share(batch_size, seed, process_index, process_count)
    return PackedBatches(rows, batch_size, max_length, seed, part)


def first_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of `lengths` in bins of `room`: the longest first, each to the first bin where it fits.

    A bin takes no more than `most_texts`.

    Example:
        >>> first_fit([3, 5, 4, 2], 8)
        [[1, 0], [2, 3]]
    """
    bins: list[list[int]] = []
    free = np.zeros(len(lengths), np.int64)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = free[: len(bins)] >= lengths[index]
        number = int(np.argmax(fits)) if fits.any() else len(bins)
        if number == len(bins):
            bins.append([])
            free[number] = room
        bins[number].append(index)
        free[number] = free[number] - lengths[index] if len(bins[number]) < most_texts(room) else 0
    return bins
