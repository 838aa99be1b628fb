"""Where a run's numbers go: `metrics.jsonl` always, `metrics.csv` for spreadsheets, TensorBoard and W&B when there.

One line a step. A step that was also evaluated carries the held-out numbers on the same line. What a model writes in
training is in `samples.jsonl`.
"""

import csv
import importlib.util
import io
import json
import os
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax._new_files import write_file
from selecttkd_jax._outside_files import parse_json, reading
from selecttkd_jax.metrics._rows import JSONL, TABLE, Row, read_lines, rows_until


class MetricsWriter:
    """Appends rows to a run's metrics files.

    Resuming drops the rows after `resume_step`: they belong to steps that will be taken again.

    Args:
        directory: The run's directory.
        resume_step: The step from which the run continues; 0 for a new run.
        wandb_project: The W&B project to log to, or None. Needs the `wandb` extra.
        writes: Whether this process writes at all: of several processes only the first one does.

    Raises:
        InputError: A row up to `resume_step` is lost.
    """

    def __init__(self, directory: Path, resume_step: int = 0, wandb_project: str | None = None, *, writes: bool = True):
        self._jsonl = directory / JSONL
        self._csv = directory / TABLE
        self._samples = directory / "samples.jsonl"
        self._writes = writes
        # Read by every process: a finished run that is started again has no others.
        self.rows: list[Row] = rows_until(directory, resume_step) if resume_step else []
        if not writes:
            return
        self._rewrite()
        if self._samples.exists():
            samples = [one for one in read_samples(self._samples) if one.get("step", 0) <= resume_step]
            write_file(self._samples, _as_lines(samples))
        self._tensorboard = _tensorboard_writer(directory, resume_step)
        self._wandb = _wandb_run(directory, wandb_project)

    def write(self, row: Row) -> None:
        """Appends one row, which has a `step`."""
        self.rows.append(row)
        if not self._writes:
            return
        with reading(self._jsonl, "cannot be written"):
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()
        self._pass_on(row, list(row))

    def complete(self, step: int, numbers: Row) -> Row:
        """Adds numbers to the last row, which is that of `step`; returns it."""
        assert self.rows and self.rows[-1]["step"] == step
        self.rows[-1] = self.rows[-1] | numbers
        if self._writes:
            self._file.close()
            self._rewrite()
            self._pass_on(self.rows[-1], list(numbers))
        return self.rows[-1]

    def flush(self) -> None:
        """Brings the rows so far to the disk."""
        if not self._writes:
            return
        with reading(self._jsonl, "cannot be written"):
            os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Appends what a model wrote for a step; every sample has `step`, `by`, `prompt` and a `marked` response."""
        if not self._writes:
            return
        with reading(self._samples, "cannot be written"), self._samples.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
        shown = ("by", "prompt", "marked")
        if self._tensorboard is not None:
            # As Markdown, where four spaces in front keep a text as it is.
            for number, sample in enumerate(samples):
                text = "\n\n".join(textwrap.indent(sample[name], "    ", lambda line: True) for name in shown[1:])
                self._tensorboard.add_text(f"samples/{sample['by']}_{number}", text, step)
        if self._wandb is not None:
            import wandb  # pyright: ignore[reportMissingImports] (an extra)

            table = wandb.Table(columns=list(shown), data=[[sample[name] for name in shown] for sample in samples])
            self._wandb.log({f"samples/{samples[0]['by']}": table}, step=step)

    def write_csv(self) -> None:
        """Writes all rows so far as a table with one column a metric; absent values stay blank."""
        if not self._writes:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self._csv, table.getvalue())

    def close(self) -> None:
        """Writes the table and closes every file."""
        if not self._writes:
            return
        try:
            self.write_csv()
        finally:
            self._file.close()
            self._close_others()

    def _rewrite(self) -> None:
        write_file(self._jsonl, _as_lines(self.rows))
        self._file = self._jsonl.open("a", encoding="utf-8")

    def _pass_on(self, row: Row, names: Sequence[str]) -> None:
        """Hands numbers of a row to TensorBoard and W&B."""
        step = int(row["step"])
        values = {name: row[name] for name in names if name != "step"}
        if self._tensorboard is not None:
            self._tensorboard.add_scalars(values, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def _close_others(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Reads `samples.jsonl`; a last line that is being written, or was torn by a kill, is left out."""
    # A text may hold what str.splitlines takes for an end of line.
    return [one for source, line in read_lines(path) if isinstance(one := parse_json(line, source), dict)]


def _tensorboard_writer(directory: Path, resume_step: int) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from selecttkd_jax.metrics._tensorboard import Board

    return Board(directory / "tensorboard", resume_step + 1 if resume_step else 0)


def _wandb_run(directory: Path, project: str | None) -> Any:
    if project is None:
        return None
    import wandb  # pyright: ignore[reportMissingImports] (an extra)

    # One id a directory, so that a resumed run continues its own curves and no other run of the same name.
    identity = f"{directory.name}-{zlib.crc32(str(directory.resolve()).encode()):08x}"
    return wandb.init(project=project, name=directory.name, dir=str(directory), resume="allow", id=identity)
