"""Rows of several sources as one, without a copy: rows that are mapped from a file stay there."""

import bisect
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Generic, TypeVar, overload

import numpy as np

from selecttkd_jax.data._rows import Part, Rows

Item = TypeVar("Item")


class Chain(Sequence[Item], Generic[Item]):
    """Sequences one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Item]]):
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._parts)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - self._ends[part]]  # counted from that part's end


def join_rows(named: Sequence[tuple[str, Rows, float | None]]) -> Rows:
    """The rows of several sources as one.

    Args:
        named: Name, rows and weight of each source. Rows with weights are mixed when batches are made of them; without,
            they are rows like others, each once an epoch.

    Returns:
        Rows with `parts`; of one source, its own.
    """
    if len(named) == 1:
        return named[0][1]
    several = [rows for _, rows, _ in named]
    joined = Rows(
        tokens=Chain([rows.tokens for rows in several]),
        response=Chain([rows.response for rows in several]),
        max_length=max(rows.max_length for rows in several),
        read=sum(rows.read for rows in several),
        cut=sum(rows.cut for rows in several),
        dropped=sum(rows.dropped for rows in several),
        sources=Chain([rows.sources for rows in several]),
        parts=tuple(Part(name, len(rows), weight) for name, rows, weight in named),
    )
    # From what each knows, which may have been counted long ago: nothing is read again.
    joined.__dict__.update(
        lengths=np.concatenate([rows.lengths for rows in several]),
        prompt_lengths=Chain([rows.prompt_lengths for rows in several]),
        checksums=np.concatenate([rows.checksums for rows in several]),
        largest_id=max(rows.largest_id for rows in several),
        response_tokens=sum(rows.response_tokens for rows in several),
        prompts_alone=sum(rows.prompts_alone for rows in several),
        # With other weights the same rows come in another order.
        fingerprint=zlib.crc32(repr([(rows.fingerprint, weight) for _, rows, weight in named]).encode()),
    )
    return joined
