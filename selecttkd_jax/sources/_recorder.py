"""What models write during training, noted as it comes: how long it is and took, how it repeats itself, the text."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax._array_types import Key
from selecttkd_jax.data import Batch, Responses, Rollouts, WithCorpus
from selecttkd_jax.generation import KeepRule, Sampling
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share
from selecttkd_jax.sources._writer import MakeWriter, Rewrite, Role
from selecttkd_jax.training import Report, TrainState

ROLLOUTS: Mapping[Role, str] = {"student": "rollouts", "teacher": "teacher_rollouts"}
"""What stands before the numbers of a model's text in a row: `rollouts/length`."""
_NGRAMS = (1, 2, 4)


@dataclass(frozen=True)
class Taken:
    """What a step learns from of a model's text, whenever it was written.

    Attributes:
        step: Counted from 1.
        batch: This process's share of the rows; the labels are the text's own.
    """

    step: int
    batch: Batch


class _Written(NamedTuple):
    """Rows that a model wrote: this process's share, where only they carry loss, of so many; and how long it took."""

    batch: Batch
    rows: int
    seconds: float


class Recorder:
    """Stands between a method and its writers, and between its source and the mesh, and notes what passes.

    Args:
        write: Makes the writers, such as `Writers`.
        mesh: Over which the rows of a batch are spread.
        rows: B, rows of the whole batch.
        stop_ids: Where a response ends.
    """

    def __init__(self, write: MakeWriter, mesh: Mesh, rows: int, stop_ids: Sequence[int]):
        self._write = write
        self._mesh = mesh
        self._rows = rows
        self._stop_ids = stop_ids
        self._coming: dict[Role, list[_Written]] = {}
        self._step = 0
        self._taken: Any = None

    def __call__(self, who: Role | KeepRule, sampling: Sampling) -> Rewrite:
        """A writer whose text is noted; what both models write is the student's, with the teacher's corrections."""
        return self.record(who if isinstance(who, str) else "student", self._write(who, sampling))

    def record(self, role: Role, rewrite: Rewrite) -> Rewrite:
        """The same writer; its text is noted as that of `role`."""

        def recorded(state: TrainState, batch: Batch, chosen: np.ndarray, key: Key) -> Batch:
            # The step before may still run: its time is none of the writer's.
            jax.block_until_ready(state.params)
            began = time.perf_counter()
            written = rewrite(state, batch, chosen, key)
            seconds = time.perf_counter() - began
            part, parts = process_share(self._mesh, len(chosen))
            own = chosen[part * len(chosen) // parts : (part + 1) * len(chosen) // parts]
            alone = replace(written, loss_mask=np.asarray(written.loss_mask) & own[:, None])
            self._coming.setdefault(role, []).append(_Written(alone, len(chosen), seconds))
            return written

        return recorded

    def report(self, step: int) -> Report:
        """The numbers of what was written since the last report, which is for `step`; every process has to ask.

        Means over the responses of the whole batch, `rollouts/...` of the student's and `teacher_rollouts/...` of the
        teacher's:

        - `rows`: how many there are;
        - `length`: tokens, the stop token included;
        - `cut`: the share that ends without a stop token, at the limit or where the row ends;
        - `distinct_1`, `distinct_2`, `distinct_4`: the share of a response's n-grams that are distinct, of responses
          that have one: it falls where a model repeats itself;
        - `seconds` and `tokens_per_second` of the writing, of this process's clock.
        """
        coming, self._coming = self._coming, {}
        self._step = step
        numbers: dict[str, float] = {}
        for role, written in coming.items():
            seconds = sum(one.seconds for one in written)
            responses = [response for one in written for response in self._responses(one)]
            counted = describe_responses(responses, self._stop_ids)
            tokens = sum(map(len, responses))
            counted |= {"seconds": seconds, "tokens_per_second": tokens / seconds}
            numbers |= {f"{ROLLOUTS[role]}/{name}": value for name, value in counted.items()}
        return Report(numbers, sum(one.seconds for written in coming.values() for one in written))

    def watch(self, place: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same `place`, as the loop is given it; its batches are noted, of which the last is the step's."""

        def watched(batch: Any) -> Any:
            self._taken = batch
            return place(batch)

        return watched

    def taken(self, role: Role) -> Taken | None:
        """What the step of the last report takes: of two streams that of `role`. None before the first step."""
        if self._taken is None:
            return None
        batch = self._taken.rows if isinstance(self._taken, WithCorpus) else self._taken
        if isinstance(batch, Responses):
            batch = getattr(batch, role)
        elif isinstance(batch, Rollouts):
            batch = batch.rows
        # A method may hide labels from its loss.
        labels = np.pad(np.asarray(batch.input_ids)[:, 1:], ((0, 0), (0, 1)))
        return Taken(self._step, replace(batch, labels=labels))

    def _responses(self, written: _Written) -> list[np.ndarray]:
        """The responses of the whole batch, of whatever process's rows; none of them empty."""
        labels, mask = np.asarray(written.batch.labels), np.asarray(written.batch.loss_mask)
        if len(labels) < written.rows:
            placed = place_batch(self._mesh, (labels, mask), written.rows)
            labels, mask = jax.tree.map(gather_to_host, placed)
        return [row[learned] for row, learned in zip(labels, mask, strict=True) if learned.any()]


def describe_responses(responses: Sequence[np.ndarray], stop_ids: Sequence[int]) -> dict[str, float]:
    """Lengths, the share that was cut and distinct n-grams of responses, as `Recorder.report` explains them."""
    if not responses:
        return {"rows": 0.0}
    numbers = {
        "rows": float(len(responses)),
        "length": float(np.mean([len(response) for response in responses])),
        "cut": float(np.mean([response[-1] not in stop_ids for response in responses])),
    }
    for size in _NGRAMS:
        shares = [_distinct(response.tolist(), size) for response in responses if len(response) >= size]
        if shares:
            numbers[f"distinct_{size}"] = float(np.mean(shares))
    return numbers


def _distinct(tokens: list[int], size: int) -> float:
    """The share of a text's n-grams, `size` tokens each, that are distinct."""
    ngrams = list(zip(*(tokens[start:] for start in range(size)), strict=False))
    return len(set(ngrams)) / len(ngrams)
