"""Files of answers: appended to as answers come, continued after an interruption, read as training data.

    {"index": 17, "prompt": [{"role": "user", "content": "..."}], "completion": "...", "finish": "stop"}

`index` is the prompt's number, counted from 0; `finish` says how the answer ended: `stop` (by itself), `length` (cut at
its limit) or `empty` (it has no text). Beside the file, `NAME.settings.json` says what the answers were made with.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import write_file
from selecttkd_jax._outside_files import expand_home, parse_json, read_json_object, reading, shorten
from selecttkd_jax.data._messages import Message
from selecttkd_jax.data._records import Record

Finish = Literal["stop", "length", "empty"]
"""How an answer ended: by itself, cut, or with no text at all."""


class AnswerFile:
    """The answers to some prompts, in a JSONL file that is complete after each of them.

    A process that dies leaves what was answered; opened again with the same prompts and settings, the file goes on
    where it stopped. Several threads may append.

    Args:
        path: The file, new or of an interrupted run.
        prompts: The messages of each prompt.
        settings: What the answers depend on (model, sampling, template, seed ...), as plain JSON data.
        extras: What else stands in the row of each prompt.

    Raises:
        InputError: The file is not one of answers, or was made from other prompts or with other settings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> prompts = [[{"role": "user", "content": text}] for text in ("Hello", "Good day")]
        >>> AnswerFile(path, prompts, {"seed": 0}).append(1, "And to you", cut=False)
        >>> AnswerFile(path, prompts, {"seed": 0}).waiting
        [0]
    """

    def __init__(
        self,
        path: str | Path,
        prompts: Sequence[Sequence[Message]],
        settings: Mapping[str, Any],
        extras: Sequence[Mapping[str, Any]] | None = None,
    ):
        self.path = expand_home(path)
        self._prompts = [list(prompt) for prompt in prompts]
        self._extras = [{}] * len(prompts) if extras is None else extras
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        beside = self.path.with_name(f"{self.path.name}.settings.json")
        here = json.loads(json.dumps(dict(settings)))
        if not self.path.absolute().parent.is_dir():
            raise InputError(
                f"{self.path.parent} is not a directory; name an existing one for {shorten(self.path.name)}"
            )
        if self.path.exists():
            self._continue(beside, here)
        else:
            with reading(beside, "cannot be written"):
                write_file(beside, json.dumps(here, ensure_ascii=False, indent=2) + "\n")

    @classmethod
    def of_records(cls, path: str | Path, records: Sequence[Record], settings: Mapping[str, Any]) -> "AnswerFile":
        """The answers to records' prompts; each row keeps what the chat template needs beside the messages."""
        extras = [{"tools": record.tools, "chat_template_kwargs": dict(record.template_kwargs)} for record in records]
        kept = [{name: value for name, value in extra.items() if value} for extra in extras]
        return cls(path, [record.asked for record in records], settings, kept)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> list[int]:
        """The prompts without an answer, by their numbers."""
        return [index for index in range(len(self._prompts)) if index not in self._rows]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The answers that are there, in the prompts' order."""
        return [self._rows[index] for index in sorted(self._rows)]

    def append(self, index: int, completion: str, *, cut: bool) -> None:
        """Writes an answer to disk; it is marked where it is `cut` at its limit, or has no text."""
        finish: Finish = "empty" if not completion.strip() else "length" if cut else "stop"
        row = {"index": index, "prompt": self._prompts[index], "completion": completion, "finish": finish}
        row |= self._extras[index]
        with self._lock, reading(self.path, "cannot be written"), self.path.open("ab") as file:
            file.write(_as_line(row))
            self._rows[index] = row

    def finish(self) -> dict[Finish, int]:
        """Puts the answers into the prompts' order, in which they need not have come; counts how they ended."""
        if self.rows != list(self._rows.values()):
            with reading(self.path, "cannot be written"):
                write_file(self.path, b"".join(map(_as_line, self.rows)))
        counts: dict[Finish, int] = {"stop": 0, "length": 0, "empty": 0}
        for row in self._rows.values():
            counts[row["finish"]] += 1
        return counts

    def _continue(self, beside: Path, here: Mapping[str, Any]) -> None:
        if not beside.is_file():
            raise InputError(f"{self.path} exists and {beside.name} does not; name a new file for the answers")
        there = read_json_object(beside)
        changed = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
        if changed:
            listed = "; ".join(f"{name} ({there.get(name)} there, {here.get(name)} here)" for name in changed)
            raise InputError(f"{self.path} was made with other settings: {listed}; restore them or name a new file")
        with reading(self.path):
            raw = self.path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), start=1):
                self._read(line, f"{self.path} line {number}")
            if len(whole) < len(raw):  # a line that was being written
                os.truncate(self.path, len(whole))

    def _read(self, line: bytes, source: str) -> None:
        row = parse_json(line, source)
        if not isinstance(row, dict) or row.get("finish") not in ("stop", "length", "empty"):
            raise InputError(f"{source} is not an answer; name a new file for the answers")
        index = row.get("index")
        if (
            not isinstance(index, int)
            or not 0 <= index < len(self._prompts)
            or row.get("prompt") != _plain(self._prompts[index])
        ):
            raise InputError(f"{source} answers another prompt than is asked now; name a new file for the answers")
        self._rows[index] = row


def _as_line(row: Mapping[str, Any]) -> bytes:
    # One write of a whole line, so that a process that dies leaves at most one line without its end.
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _plain(prompt: Sequence[Message]) -> Any:
    """A prompt as it comes back from JSON."""
    return json.loads(json.dumps(list(prompt)))
