"""What happened to a run besides its steps, in `events.jsonl`: starts and their machines, warnings, how it stopped."""

import datetime
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import first_line, parse_json
from selecttkd_jax.metrics._rows import read_lines

EVENTS_FILE = "events.jsonl"
"""The file's name in a run's directory."""

Event = dict[str, Any]
"""A line of the file: `time` (UTC, ISO 8601), `event` (its kind) and what is known of it."""


def read_events(directory: Path) -> list[Event]:
    """The events of a run, those left out that a kill tore or that cannot be read."""
    found = []
    if (directory / EVENTS_FILE).is_file():
        for source, line in read_lines(directory / EVENTS_FILE):
            with suppress(InputError):
                if isinstance(event := parse_json(line, source), dict):
                    found.append(event)
    return found


class EventLog(logging.Handler):
    """Writes events, and each warning of this library's log as one.

    What comes before `open` waits: a run that is refused leaves no file.
    """

    def __init__(self):
        super().__init__(logging.WARNING)
        self._path: Path | None = None
        self._writes = True
        self._waiting: list[Event] = []

    def open(self, directory: Path, *, writes: bool = True) -> None:
        """From here on events go into `directory`; of several processes, only the first one `writes`."""
        self._path, self._writes = directory / EVENTS_FILE, writes
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._append(event)

    def tell(self, kind: str, **facts: Any) -> None:
        """Appends one event."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._append({"time": now, "event": kind, **facts})

    def emit(self, record: logging.LogRecord) -> None:
        """A warning of the log."""
        self.tell("warning", message=record.getMessage())

    @contextmanager
    def listening(self) -> Iterator["EventLog"]:
        """Takes this library's warnings while the block runs, and tells how it ended where it ended badly."""
        library = logging.getLogger("selecttkd_jax")
        library.addHandler(self)
        try:
            yield self
        except BaseException as error:
            self.tell("stopped", why=type(error).__name__, message=first_line(error)[:500])
            raise
        finally:
            library.removeHandler(self)

    def _append(self, event: Event) -> None:
        if self._path is None:
            self._waiting.append(event)
        elif self._writes:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(event)}\n")
            except OSError:  # a full disk stops the run where its numbers are written, not here
                return
