"""A contender's side of the race: a process that waits for its turn, works, and says how long it took.

Only the standard library and NumPy, because contenders run in two environments.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Channel:
    """Turns come in on standard input, answers go out on standard output, one line of JSON each."""

    def __init__(self):
        # Libraries print, too. They get standard error; the answers use a copy of the stream that only we know.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._wanted: list[Path] = []
        self._started = (0.0, 0.0)

    def ready(self, **facts: Any) -> None:
        """Says that everything is loaded, and what the race should know about this contender."""
        self._send(facts)

    def next_turn(self) -> bool:
        """Waits for the next turn and starts the clock; False when the race is over."""
        words = sys.stdin.readline().split()
        if words[:1] != ["run"]:
            return False
        self._wanted = [Path(word) for word in words[1:]]
        self._started = time.perf_counter(), time.process_time()
        return True

    def report(self, arrays: Mapping[str, Any] | None = None, **numbers: Any) -> None:
        """Stops the clock, writes the arrays this turn was asked for, raw, to files of their names, and answers."""
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        for path in self._wanted:
            if arrays and path.name in arrays:
                np.asarray(arrays[path.name]).tofile(path)
        self._send({"seconds": wall, "cpu_seconds": cpu, **numbers})

    def _send(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")


def serve(channel: Channel, work: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Calls `work() -> (numbers, arrays)` at every turn. Arrays are let go before the next one starts."""
    while channel.next_turn():
        numbers, arrays = work()
        channel.report(arrays, **numbers)
        del arrays
