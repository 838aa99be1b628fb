"""Tokenised rows: token ids, and which of them the model has to produce."""

import dataclasses
import functools
import zlib
from collections.abc import Container, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of one of several sources.

    Attributes:
        name: The source.
        count: How many rows it has.
        weight: Its share of what is learned from, relative to the others'; None: as many as it has.
    """

    name: str
    count: int
    weight: float | None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Ragged rows of tokens, none longer than `max_length`, each with a response token or a prompt alone.

    Attributes:
        tokens: Token ids of each row, int32.
        response: True for each token of a row that carries loss, bool. Never true for a row's first token, which
            nothing predicts; false for all of a prompt alone, which has room for a response token behind it.
        max_length: The length rows were cut to, in tokens.
        read: Records read.
        cut: Rows that lost the end of their response.
        dropped: Rows left out because no response token fitted.
        sources: Where each row came from, `train.jsonl line 7`; empty where nobody knows.
        parts: The several sources whose rows follow on each other here (`join_rows`); empty for rows of one.
    """

    tokens: Sequence[np.ndarray]
    response: Sequence[np.ndarray]
    max_length: int
    read: int
    cut: int = 0
    dropped: int = 0
    sources: Sequence[str] = ()
    parts: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, sources: Container[str]) -> "Rows":
        """The rows that came from these sources; the others count as dropped."""
        kept = [index for index, source in enumerate(self.sources) if source in sources]
        tokens, response = (tuple(values[index] for index in kept) for values in (self.tokens, self.response))
        dropped = self.dropped + len(self) - len(kept)
        named = tuple(self.sources[index] for index in kept)
        return Rows(tokens, response, self.max_length, self.read, self.cut, dropped, named)

    @property
    def is_mixed(self) -> bool:
        """Whether rows come by the weights of their sources, some of them more often than others."""
        return any(part.weight is not None for part in self.parts)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.fromiter(map(len, self.tokens), np.int64, len(self.tokens))

    @functools.cached_property
    def total_tokens(self) -> int:
        """Tokens in all rows, prompts included, padding excluded."""
        return int(self.lengths.sum())

    @functools.cached_property
    def largest_id(self) -> int:
        """The largest token id in any row."""
        return max((int(row.max()) for row in self.tokens if len(row)), default=0)

    @functools.cached_property
    def response_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(int(row.sum()) for row in self.response)

    @functools.cached_property
    def prompt_lengths(self) -> Sequence[int]:
        """Tokens before the last response of each row, or of a prompt alone: what a model that answers it is given."""
        return tuple(map(_prompt_length, self.response))

    @functools.cached_property
    def prompts_alone(self) -> int:
        """Rows without a response."""
        return sum(not response.any() for response in self.response)

    @functools.cached_property
    def checksums(self) -> np.ndarray:
        """A checksum of each row's ids, uint32, to find a row without reading the others."""
        return np.fromiter((zlib.crc32(tokens.tobytes()) for tokens in self.tokens), np.uint32, len(self))

    @functools.cached_property
    def fingerprint(self) -> int:
        """A checksum of ids and masks, to tell whether a resumed run reads the same rows."""
        checksum = 0
        for tokens, response in zip(self.tokens, self.response, strict=True):
            checksum = zlib.crc32(response.tobytes(), zlib.crc32(tokens.tobytes(), checksum))
        return checksum

    def fill(self, length: int) -> float:
        """The share of sequences of `length` tokens that rows fill, one in each."""
        return self.total_tokens / (len(self) * length)

    def describe_parts(self) -> list[str]:
        """A line for the log for each of several sources: its rows, and its share of what is learned from."""
        total = sum(part.count if part.weight is None else part.weight for part in self.parts)
        lines = []
        for part in self.parts:
            share = (part.count if part.weight is None else part.weight) / total
            passes = share * len(self) / part.count
            lines.append(
                f"{part.name}: {part.count:,} rows, {100 * share:.3g} % of what is learned from; {passes:.3g} times "
                "through them an epoch"
            )
        return lines

    def count_known(self, others: "Rows") -> int:
        """How many of the other rows are among these, token by token."""
        candidates = np.flatnonzero(np.isin(self.checksums, others.checksums))
        known = {self.tokens[int(index)].tobytes() for index in candidates}
        return sum(others.tokens[index].tobytes() in known for index in range(len(others)))

    def summary(self) -> str:
        """One line for the log: rows kept, cut and dropped, and the share of tokens that carry loss."""
        share = 100 * self.response_tokens / max(self.total_tokens, 1)
        alone = f"; {self.prompts_alone:,} rows are prompts alone" if self.prompts_alone else ""
        return (
            f"{len(self):,} of {self.read:,} rows kept: {self.cut:,} cut at {self.max_length} tokens, {self.dropped:,} "
            f"dropped (prompt too long); {self.response_tokens:,} of {self.total_tokens:,} tokens ({share:.1f} %) "
            f"carry loss{alone}"
        )


def _prompt_length(response: np.ndarray) -> int:
    begins = np.flatnonzero(response & ~np.concatenate([[False], response[:-1]]))
    return int(begins[-1]) if len(begins) else len(response)
