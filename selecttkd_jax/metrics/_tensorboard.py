"""A run's numbers for TensorBoard, in files that are as far as the run is.

tensorboardX writes from a thread that falls behind, and dies of a full disk; here its file is written directly.
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Board:
    """Event files in a folder. What cannot be written is said once, and no run ends of it.

    Args:
        directory: The folder; a file is added to it.
        first_step: The first step that is to come: what older files have of it and later ones is no longer shown.
    """

    def __init__(self, directory: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._writer: Any = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Two starts within a second are two files.
            self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}.{time.time_ns() % 10**9}")
        except OSError as error:
            self._give_up(error)
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the numbers of a step."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(step, summary=scalar(name, value))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a text in Markdown."""
        from tensorboardX.summary import text as as_summary

        self._add(step, summary=as_summary(tag, text))

    def flush(self) -> None:
        """Hands all of it to the system."""
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        try:
            if self._writer is not None:
                self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError):
            if writer is not None:
                writer.close()
        logger.warning("no more is written for TensorBoard: %s", error.strerror or error)
