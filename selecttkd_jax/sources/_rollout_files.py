"""What the models of a run wrote, on disk: for people, for the run that resumes, and as records for another run."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selecttkd_jax.sources._texts import Text

Pair = tuple[Text, Text]
"""The teacher's and the student's answer to one prompt, each a whole row."""
AddStep = Callable[[int, Sequence[Pair]], None]


@dataclass(frozen=True)
class RolloutFiles:
    """Files `epoch-1.jsonl`, ...: pairs of responses as contrastive records, with what it takes to repeat the step.

        {"prompt": ..., "teacher_response": "...", "student_response": "...",
         "row": "train.jsonl line 7", "step": 12, "made_with": ..., (and what else the writer says of all its rows)
         "teacher_tokens": {"ids": [...], "learned": [first, end, ...]}, "student_tokens": {...}}

    `made_with` stands for all that the text depends on, weights included: other rows are not this run's. The tokens are
    those of whole rows, and those from each `first` up to the `end` after it carry loss.

    Attributes:
        directory: Where they are; made when the first is written.
        describe: The prompts of a step's whole batch, as records have them, with the name of each as `row`.
        decode: The text of tokens.
        identity: A number for all that a run is made with but its trained weights.
    """

    directory: Path
    describe: Callable[[int], Sequence[dict[str, Any]]]
    decode: Callable[[Sequence[int]], str]
    identity: int = 0

    def path(self, epoch: int) -> Path:
        """The file of an epoch, counted from 1."""
        return self.directory / f"epoch-{epoch}.jsonl"

    def read(self, epoch: int, made_with: int, rows: int, length: int) -> tuple[dict[int, list[Pair]], int]:
        """The steps of an epoch that are there whole, and the size of the file up to their end.

        Args:
            epoch: Counted from 1.
            made_with: Reading stops at rows of another number.
            rows: Rows of a step.
            length: T.
        """
        steps: dict[int, list[Pair]] = {}
        path, size, end = self.path(epoch), 0, 0
        if not path.exists():
            return steps, 0
        with path.open("rb") as file:
            pairs: list[Pair] = []
            for line in file:
                values = _parse(line)
                if values is None or values.get("made_with") != made_with:
                    break
                size += len(line)
                pairs.append(tuple(_to_text(values[f"{role}_tokens"], length) for role in ("teacher", "student")))  # type: ignore[arg-type]
                if len(pairs) == rows:
                    steps[values["step"]] = pairs
                    pairs, end = [], size
        return steps, end

    @contextmanager
    def add(self, epoch: int, end: int, **facts: Any) -> Iterator[AddStep]:
        """Appends to the file of an epoch after its first `end` bytes; only process 0 writes.

        Args:
            epoch: Counted from 1.
            end: From `read`.
            **facts: What every row says, `made_with` among it.
        """
        if jax.process_index() != 0:
            yield lambda step, pairs: None
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if end == 0 and self._holds_other(epoch, facts["made_with"]):  # what may have taken hours
            self.path(epoch).replace(self.path(epoch).with_suffix(".jsonl.old"))
        with self.path(epoch).open("ab") as file:
            file.truncate(end)

            def add_step(step: int, pairs: Sequence[Pair]) -> None:
                for prompt, (teacher, student) in zip(self.describe(step), pairs, strict=True):
                    responses = {
                        "teacher_response": self._response(teacher),
                        "student_response": self._response(student),
                    }
                    tokens = {"teacher_tokens": _to_json(teacher), "student_tokens": _to_json(student)}
                    line = json.dumps({**prompt, **responses, "step": step, **facts, **tokens}, ensure_ascii=False)
                    file.write(f"{line}\n".encode())
                file.flush()

            yield add_step
            os.fsync(file.fileno())

    def _holds_other(self, epoch: int, made_with: int) -> bool:
        """Whether the file of an epoch begins with a whole row that other weights wrote."""
        if not self.path(epoch).exists():
            return False
        with self.path(epoch).open("rb") as file:
            first = _parse(file.readline())
        return first is not None and first.get("made_with") != made_with

    def _response(self, text: Text) -> str:
        """The last response of a row."""
        learned = _list_changes(text.mask)[-2:]
        return self.decode([int(token) for token in text.ids[learned[0] + 1 : learned[1] + 1]] if learned else [])


def _parse(line: bytes) -> dict[str, Any] | None:
    """A row; None for a line that a kill cut short."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _to_json(text: Text) -> dict[str, list[int]]:
    # Logits at a position predict the token after it.
    return {"ids": text.ids[text.ids >= 0].tolist(), "learned": [change + 1 for change in _list_changes(text.mask)]}


def _to_text(values: dict[str, list[int]], length: int) -> Text:
    ids = np.full(length, -1, np.int32)
    ids[: len(values["ids"])] = values["ids"]
    changes = np.zeros(length + 1, np.int32)
    changes[np.array(values["learned"], np.int32) - 1] = 1
    return Text(ids, np.cumsum(changes)[:length] % 2 == 1)


def _list_changes(mask: np.ndarray) -> list[int]:
    """Where a mask begins and ends to be true, in turn."""
    return np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
