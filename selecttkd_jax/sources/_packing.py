"""Batches whose rows share sequences by the time they are on the devices."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from jax.sharding import Mesh

from selecttkd_jax.data import Batch, Layout, Responses, Rollouts, WithCorpus, lay_out_sequences, share_sequences
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share

logger = logging.getLogger(__name__)

# A batch takes one of these shares of its sequences, since each is a program of its own.
_SHARES = tuple(Fraction(eighths, 8) for eighths in (2, 3, 4, 6, 8))


@dataclass(frozen=True)
class RowPacker:
    """Puts the rows of each batch together and places them: the same rows are learned from, in fewer sequences.

    How many sequences a batch takes follows from its rows, so there are a few shapes of batches, of which each compiles
    a step. Both of two streams have as many.

    Attributes:
        mesh: The run's.
        rows: Of a whole batch before.
        unit: What a number of sequences has to be a multiple of: the micro-batches times the devices that share rows.
    """

    mesh: Mesh
    rows: int
    unit: int
    _told: set[int] = field(default_factory=set, repr=False, compare=False)

    def __call__(self, batch: Any) -> Any:
        """A batch, two streams or rollouts, with a corpus or without, from this process's share of their rows."""
        streams = _streams(batch)
        shared = [share_sequences(stream) for stream in streams]
        part, parts = process_share(self.mesh, self.rows)
        sequences = self._choose(max(map(len, shared)), parts)
        layouts = [
            lay_out_sequences(stream, bins, sequences // parts, part=part, parts=parts)
            for stream, bins in zip(streams, shared, strict=True)
        ]
        level = logging.DEBUG if sequences in self._told else logging.INFO
        self._told.add(sequences)
        full = np.mean([layout.taken >= 0 for layout in layouts])
        logger.log(
            level, "packed: %d rows share %d sequences and fill %.0f %% of them", self.rows, sequences, 100 * full
        )
        return place_batch(self.mesh, _packed(batch, layouts), sequences)

    def sizes(self) -> list[int]:
        """The numbers of sequences that there are, the smallest first."""
        return sorted({ceil(self.rows * share / self.unit) * self.unit for share in _SHARES})

    def _choose(self, needed: int, parts: int) -> int:
        """The fewest sequences that suffice on every process, of which each has a part as large."""
        if parts > 1:
            said: Any = place_batch(self.mesh, np.full(self.rows // parts, needed, np.int32), self.rows)
            needed = int(gather_to_host(said).max())
        return next(size for size in self.sizes() if size >= needed * parts)


def _streams(batch: Any) -> Sequence[Batch]:
    if isinstance(batch, Responses):
        return batch.teacher, batch.student
    if isinstance(batch, WithCorpus):
        return *_streams(batch.rows), batch.corpus
    if isinstance(batch, Rollouts):
        return (batch.rows,)
    return (batch,)


def _packed(batch: Any, layouts: Sequence[Layout]) -> Any:
    if isinstance(batch, Responses):
        teacher, student = layouts
        alphas = {
            name: None if skews is None else layout.spread(skews)
            for name, skews, layout in (
                ("teacher_alpha", batch.teacher_alpha, teacher),
                ("student_alpha", batch.student_alpha, student),
            )
        }
        return Responses(teacher.pack(batch.teacher), student.pack(batch.student), **alphas)
    if isinstance(batch, WithCorpus):
        return WithCorpus(_packed(batch.rows, layouts[:-1]), layouts[-1].pack(batch.corpus))
    if isinstance(batch, Rollouts):
        numbers = (batch.old_log_prob, batch.importance, batch.advantage)
        return Rollouts(layouts[0].pack(batch.rows), *map(layouts[0].move, numbers))
    return layouts[0].pack(batch)
