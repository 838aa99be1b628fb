"""Progress of long work: a bar with an ETA on a terminal, plain lines in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(file=sys.stderr))


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(done, total)`; shows a bar on a terminal and at most ten lines elsewhere."""
    if sys.stderr.isatty():
        with _bar() as bar:
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
    """Shows training steps: loss, acceptance rate, held-out KL, and the time that is left.

    Args:
        log_every: Steps between two lines where the output is not a terminal.
        shown: Whether to show anything: of several processes only the first one does.
    """

    def __init__(self, log_every: int, *, shown: bool = True):
        self._log_every = log_every
        self._shown = shown
        self._bar: Progress | None = None
        self._task: Any = None
        self._held_out = ""
        self._began: tuple[int, float] | None = None

    def __enter__(self) -> "StepProgress":
        if self._shown and sys.stderr.isatty():
            self._bar = _bar()
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
        if "held_out/kl" in row:
            self._held_out = f"held-out KL {row['held_out/kl']:.3f} (step {step})"
        note = self._held_out
        if "loss" in row:
            note = f"loss {row['loss']:.4f}  TAR {row['tar']:.3f}  {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=total, note=note)
        elif step % self._log_every == 0 or step == total or "held_out/kl" in row:
            logger.info("step %d/%d  %s  %s", step, total, note, self._remaining(step, total, row))

    def _remaining(self, step: int, total: int, row: dict[str, float]) -> str:
        first, began = self._began or (step, 0.0)
        if step == first:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - began) / (step - first) * (total - step)), 60)
        return f"{row.get('step_seconds', 0):.2f} s/step  {minutes}:{seconds:02d} left"
