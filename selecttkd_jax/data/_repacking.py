"""Rows of a batch put together: those that were written a moment ago, whose lengths nobody knew before.

`pack_batches` makes batches of full sequences of rows that are on disk. Here the rows of a batch are given, and they
share as few sequences as they fill.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from selecttkd_jax.data._batches import Batch, Unpacked
from selecttkd_jax.data._packing import first_fit


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch's rows go.

    Attributes:
        taken: Which token of the rows, counted through all of them, stands at each place of the sequences; -1 for
            padding; int [S, T].
        segment_ids: The number of its row in its sequence, from 1; 0 for padding; int32 [S, T].
        first: The number of the first of the rows in the whole batch, of which other processes have others.
        rows: Of the whole batch.
    """

    taken: np.ndarray
    segment_ids: np.ndarray
    first: int
    rows: int

    def move(self, values: Any) -> np.ndarray:
        """What is known of each token, [B, T], at its new place, [S, T]; zeros elsewhere."""
        values = np.asarray(values)
        return np.where(self.taken < 0, np.zeros((), values.dtype), values.reshape(-1)[self.taken])

    def spread(self, values: Any) -> np.ndarray:
        """What is known of each row, [B], at each of its tokens, [S, T]; zeros elsewhere."""
        values = np.asarray(values)
        return self.move(np.broadcast_to(values[:, None], (len(values), self.taken.shape[1])))

    def pack(self, batch: Batch) -> Batch:
        """The rows at their new places."""
        moved = {name: self.move(getattr(batch, name)) for name in ("input_ids", "labels", "loss_mask", "positions")}
        places = np.where(self.taken < 0, 0, self.first * self.taken.shape[1] + self.taken).astype(np.int32)
        return Batch(**moved, segment_ids=self.segment_ids, unpacked=Unpacked(places, self.rows))


def share_sequences(batch: Batch) -> list[list[int]]:
    """Which rows of a batch go into one sequence: the longest first, each to the first where it fits.

    Rows without tokens, which fill up a batch, go nowhere.
    """
    segments = np.asarray(batch.segment_ids)
    lengths = np.sum(segments != 0, axis=1)
    kept = np.flatnonzero(lengths)
    bins = first_fit(lengths[kept].tolist(), segments.shape[1])
    return [[int(kept[index]) for index in rows] for rows in bins]


def lay_out_sequences(
    batch: Batch, shared: list[list[int]], sequences: int, *, part: int = 0, parts: int = 1
) -> Layout:
    """The layout of a batch whose rows are `shared` among the first of `sequences` sequences.

    Args:
        batch: The rows, of the whole batch the `part`-th of `parts`.
        shared: From `share_sequences`.
        sequences: How many there are.
        part: See `batch`.
        parts: See `batch`.
    """
    segments = np.asarray(batch.segment_ids)
    length = segments.shape[1]
    taken = np.full((sequences, length), -1)
    segment_ids = np.zeros((sequences, length), np.int32)
    for sequence, rows in enumerate(shared):
        start = 0
        for number, row in enumerate(rows, 1):
            end = start + int(np.sum(segments[row] != 0))
            taken[sequence, start:end] = row * length + np.arange(end - start)
            segment_ids[sequence, start:end] = number
            start = end
    return Layout(taken, segment_ids, first=part * len(segments), rows=parts * len(segments))
