"""Progress of long work: a bar with an ETA on a terminal, plain lines in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

logger = logging.getLogger(__name__)

HELD_OUT = {"kl": "held-out KL", "cross_entropy": "held-out cross-entropy"}
"""The held-out numbers that training is to lower, in words; the first one that there is counts."""


def _bar(description: str) -> Progress:
    """A bar that fits 80 columns, also with an hour left: what does not fit is cut off, never wrapped."""
    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (BarColumn(bar_width=10), MofNCompleteColumn(), note)
    named = (TextColumn(description), *columns, TimeRemainingColumn()) if description else columns
    return Progress(*named, console=Console(file=sys.stderr))


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(done, total)`; shows a bar on a terminal and at most ten lines elsewhere."""
    if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
        with _bar(description) as bar:
            task = bar.add_task(description, total=None, note="")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    tenths = 0

    def log(done: int, total: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            logger.info("%s: %d of %d", description, done, total)

    yield log


class StepProgress:
    """Shows training steps: divergence, acceptance rate, the held-out number, and the time that is left.

    Not the loss: where tokens are selected it rises with the share of them that count, and says little by itself.

    Args:
        log_every: Steps between two lines where the output is not a terminal.
        shown: Whether to show anything: of several processes only the first one does.
    """

    def __init__(self, log_every: int, *, shown: bool = True):
        self._log_every = log_every
        self._shown = shown
        self._bar: Progress | None = None
        self._task: Any = None
        self._held_out: tuple[str, float, int] | None = None
        self._began: tuple[int, float] | None = None

    def __enter__(self) -> "StepProgress":
        # --quiet leaves warnings: no bar, no lines.
        if self._shown and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            self._bar = _bar("")
            self._bar.__enter__()
            self._task = self._bar.add_task("training", total=None, note="compiling")
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def __call__(self, step: int, total: int, row: dict[str, float]) -> None:
        """Shows one finished step."""
        if not self._shown:
            return
        if self._began is None:
            self._began = (step, time.monotonic())
        evaluated = next((name for name in HELD_OUT if f"held_out/{name}" in row), None)
        if evaluated is not None:
            self._held_out = (evaluated, row[f"held_out/{evaluated}"], step)
        left = self._left(step, total)
        if self._bar is not None:
            note = "  ".join([*_of_the_batch(row), *self._of_the_held_out(short=True), *left])
            self._bar.update(self._task, completed=step, total=total, note=note)
        elif step % self._log_every == 0 or step == total or evaluated is not None:
            pace = [f"{row['step_seconds']:.2f} s/step", *_of_the_writing(row)] if left else []
            parts = [f"step {step}/{total}", *_of_the_batch(row), *self._of_the_held_out(short=False), *pace, *left]
            logger.info("%s", "  ".join(parts))

    def _of_the_held_out(self, *, short: bool) -> list[str]:
        if self._held_out is None:
            return []
        name, value, step = self._held_out
        if not short:
            return [f"{HELD_OUT[name]} {value:.3f} (step {step})"]
        return [f"{'KL' if name == 'kl' else 'held-out'} {value:.3f}"]

    def _left(self, step: int, total: int) -> list[str]:
        first, began = self._began or (step, 0.0)
        if step == first or step == total:
            return []
        minutes, seconds = divmod(round((time.monotonic() - began) / (step - first) * (total - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return [f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"]


def _of_the_writing(row: dict[str, float]) -> list[str]:
    """The share of a step's time in which a model wrote."""
    if "learning_seconds" not in row:
        return []
    return [f"writing {1 - row['learning_seconds'] / row['step_seconds']:.0%}"]


def _of_the_batch(row: dict[str, float]) -> list[str]:
    """Those of a row's training numbers that it has, by what they are called."""
    names = {"divergence": "divergence", "cross_entropy": "cross-entropy", "tar": "TAR"}
    return [f"{label} {row[name]:.3f}" for name, label in names.items() if name in row]
