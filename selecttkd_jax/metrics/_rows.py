"""The rows of a run as they are read back: strictly, and from the table where a line is lost."""

import csv
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import parse_json, reading

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""The numbers of a step, by name."""

JSONL, TABLE = "metrics.jsonl", "metrics.csv"


def read_metrics(path: Path, *, strict: bool = True) -> list[Row]:
    """Reads `metrics.jsonl`; a last line that is being written, or was torn by a kill, is left out.

    Args:
        path: The file.
        strict: False leaves out every line that is no row, with a warning.

    Raises:
        InputError: It cannot be read, or `strict`, and a line before is not a row of finite numbers with a step.
    """
    rows = []
    for source, line in read_lines(path):
        try:
            if not _is_row(value := parse_json(line, source)):
                raise InputError(f"{source} is not a row of numbers with a step")
        except InputError as error:
            if strict:
                raise
            logger.warning("left out: %s", error)
            continue
        rows.append(value)
    return rows


def held_out_numbers(row: Row) -> dict[str, float]:
    """The held-out numbers in a row."""
    return {name.removeprefix("held_out/"): value for name, value in row.items() if name.startswith("held_out/")}


def rows_until(directory: Path, step: int) -> list[Row]:
    """The rows of a run up to a step, each once and in order; what `metrics.jsonl` lacks is taken from the table.

    Raises:
        InputError: Neither has a step. That of step 0 alone may be missing: nothing was learnt in it.
    """
    found: dict[int, Row] = {}
    twice: set[int] = set()
    if (directory / JSONL).exists():
        for row in read_metrics(directory / JSONL, strict=False):
            if found.setdefault(int(row["step"]), row) != row:
                twice.add(int(row["step"]))
    for other in twice:
        del found[other]
    lacking = [number for number in range(step + 1) if number not in found]
    if lacking and (directory / TABLE).exists():
        table = _read_table(directory / TABLE)
        mended = [number for number in lacking if number in table]
        found |= {number: table[number] for number in mended}
        if mended:
            logger.warning("%s lacked the rows of %s: taken from %s", JSONL, _name(mended), TABLE)
    if lost := [number for number in range(1, step + 1) if number not in found]:
        raise InputError(
            f"{directory / JSONL} lacks the rows of {_name(lost)}, up to step {step} of the checkpoint, and so does "
            f"{TABLE}: put the file back to resume, or choose another output"
        )
    return [found[number] for number in range(step + 1) if number in found]


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, each with its place, but the last one where it has no end."""
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield f"{path} line {number}", line


def _is_row(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value.values())
        and value.get("step", -1) >= 0
        and value["step"] == int(value["step"])
    )


def _read_table(path: Path) -> dict[int, Row]:
    """The rows of `metrics.csv` by their steps; none where it is not such a table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [{name: value for name, value in line.items() if value} for line in csv.DictReader(file)]
        rows = [{name: float(value) for name, value in line.items()} | {"step": int(line["step"])} for line in lines]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return {}
    return {int(row["step"]): row for row in rows if _is_row(row)}


def _name(steps: list[int]) -> str:
    """`step 4`, `steps 4 to 9`, `42 steps from 4 to 91`."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) == steps[-1] - steps[0] + 1:
        return f"steps {steps[0]} to {steps[-1]}"
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
