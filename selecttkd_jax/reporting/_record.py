"""What the folder of a run says, also while it is under way: options, rows, samples, events."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home, reading
from selecttkd_jax.metrics import EVENTS_FILE, Event, Row, held_out_numbers, read_metrics

# Lines are kept from the end of a file that a long run has filled.
_MOST_BYTES = 2**24


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        directory: The run's.
        name: What to call it.
        options: The options of `config.toml` by their dotted names.
        rows: Of `metrics.jsonl`, one a step, but for lines that are none.
        samples: Of `samples.jsonl`: what a model wrote in training.
        events: Of `events.jsonl`: starts, warnings, stops.
    """

    directory: Path
    name: str
    options: Mapping[str, Any]
    rows: list[Row]
    samples: list[dict[str, Any]]
    events: list[Event]

    @property
    def step(self) -> int:
        """The last step that was taken."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def steps(self) -> int | None:
        """How many the run is to take; None where its configuration does not say."""
        steps = self.options.get("training.steps")
        return steps if isinstance(steps, int) else None

    @property
    def state(self) -> str:
        """`8 steps`, or `step 30 of 100` of a run that has not ended."""
        if self.steps is None or self.step >= self.steps:
            return f"{self.step} steps"
        return f"step {self.step} of {self.steps}"

    @property
    def seconds(self) -> float:
        """Of all steps; evaluations, checkpoints and starts are not counted."""
        return sum(row.get("step_seconds", 0.0) for row in self.rows)

    @property
    def tokens_per_second(self) -> float | None:
        """The median step's; None before the first one."""
        pace = [row["tokens_per_second"] for row in self.rows if "tokens_per_second" in row]
        return median(pace) if pace else None

    @property
    def evaluated(self) -> list[tuple[int, dict[str, float]]]:
        """Steps that were evaluated, with their held-out numbers."""
        return [(int(row["step"]), numbers) for row in self.rows if (numbers := held_out_numbers(row))]


def read_run(directory: str | Path) -> RunRecord:
    """Reads a run's folder.

    Raises:
        InputError: It is no run's, or a file in it cannot be read.
    """
    directory = expand_home(directory)
    config = directory / "config.toml"
    if not config.is_file():
        raise InputError(f"{directory} is no run: it holds no config.toml; name the output of selecttkd train")
    with reading(config, "is not valid TOML"):
        options = tomllib.loads(config.read_text(encoding="utf-8-sig"))
    metrics = directory / "metrics.jsonl"
    return RunRecord(
        directory=directory,
        name=directory.resolve().name,
        options=_flatten(options),
        rows=read_metrics(metrics, strict=False) if metrics.is_file() else [],
        samples=_read_lines(directory / "samples.jsonl"),
        events=_read_lines(directory / EVENTS_FILE),
    )


def name_apart(runs: list[RunRecord]) -> list[str]:
    """A name for each run: its folder's, or the path where two folders are called the same."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.directory) for run in runs]


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; what is torn, or not one, is left out."""
    if not path.is_file():
        return []
    found = []
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            file.seek(size - _MOST_BYTES)
            file.readline()
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found.append(value)
    return found
