"""What a server wrote for the steps of a run, on disk as it comes: for people, and for the run that resumes."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from selecttkd_jax._outside_files import reading


class Question(NamedTuple):
    """A prompt's text, and the row's key in hexadecimal digits: no two rows of a run draw with the same one."""

    prompt: str
    draw: str


class Served(NamedTuple):
    """An answer, whether it was cut, and after how many steps the weights that wrote it were handed over."""

    text: str
    cut: bool
    after: int


@dataclass(frozen=True)
class EngineFiles:
    """Files `step-1.jsonl`, ...: a step's answers, each on disk before the next one is waited for.

        {"made_with": ..., "draw": "...", "prompt": "...", "completion": "...", "finish": "stop", "after": 8}

    A server does not repeat itself, so a step that is taken once more reads its text here.

    Attributes:
        directory: Where they are; made when the first is written.
        made_with: Stands for all that a run is made with: other rows are not this run's.
    """

    directory: Path
    made_with: int

    def path(self, step: int) -> Path:
        """The file of the text that is written after `step` steps, for the next one."""
        return self.directory / f"step-{step + 1}.jsonl"

    def read(self, step: int) -> dict[Question, Served]:
        """This run's answers; what follows them in the file, a line that a kill cut short or another run's, is cut."""
        path, found, end = self.path(step), {}, 0
        if not path.exists():
            return {}
        with reading(path), path.open("rb") as file:
            for line in file:
                row = _parse(line)
                if row.get("made_with") != self.made_with:
                    break
                answer = Served(row["completion"], row["finish"] == "length", row["after"])
                found[Question(row["prompt"], row["draw"])] = answer
                end += len(line)
        if end < path.stat().st_size:
            with reading(path, "cannot be written"):
                os.truncate(path, end)
        return found

    def append(self, step: int, question: Question, answer: Served) -> None:
        """Writes an answer."""
        row = {
            "made_with": self.made_with,
            "draw": question.draw,
            "prompt": question.prompt,
            "completion": answer.text,
            "finish": "length" if answer.cut else "stop",
            "after": answer.after,
        }
        path = self.path(step)
        with reading(path, "cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _parse(line: bytes) -> Mapping[str, Any]:
    """A row; an empty one for what is none."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
