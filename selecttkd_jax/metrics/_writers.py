"""Where a run's numbers go: `metrics.jsonl` always, `metrics.csv` for spreadsheets, TensorBoard and W&B when there.

One line a step. A step that was also evaluated carries the held-out numbers on the same line. What a model writes in
training is in `samples.jsonl`.
"""

import csv
import importlib.util
import json
import logging
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""The numbers of a step, by name."""


def read_metrics(path: Path) -> list[Row]:
    """Reads `metrics.jsonl`; a last line torn by a kill is left out."""
    return _read_lines(path)


class MetricsWriter:
    """Appends rows to a run's metrics files.

    Resuming drops the rows after `resume_step`: they belong to steps that will be taken again.

    Args:
        directory: The run's directory.
        resume_step: The step from which the run continues; 0 for a new run.
        wandb_project: The W&B project to log to, or None. Needs the `wandb` extra.
        writes: Whether this process writes at all: of several processes only the first one does.
    """

    def __init__(self, directory: Path, resume_step: int = 0, wandb_project: str | None = None, *, writes: bool = True):
        self._jsonl = directory / "metrics.jsonl"
        self._csv = directory / "metrics.csv"
        self._samples = directory / "samples.jsonl"
        self._writes = writes
        self.rows: list[Row] = []
        # Read by every process: a finished run that is started again has no others.
        if resume_step and self._jsonl.exists():
            self.rows = [row for row in read_metrics(self._jsonl) if row["step"] <= resume_step]
        if not writes:
            return
        _rewrite(self._jsonl, self.rows)
        self._file = self._jsonl.open("a", encoding="utf-8")
        if self._samples.exists():
            _rewrite(self._samples, [one for one in _read_lines(self._samples) if one["step"] <= resume_step])
        self._tensorboard = _tensorboard_writer(directory, resume_step)
        self._wandb = _wandb_run(directory, wandb_project)

    def write(self, row: Row) -> None:
        """Appends one row, which has a `step`."""
        self.rows.append(row)
        if not self._writes:
            return
        self._file.write(f"{json.dumps(row)}\n")
        self._file.flush()
        step = int(row["step"])
        values = {name: value for name, value in row.items() if name != "step"}
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Appends what a model wrote for a step; every sample has `step`, `by`, `prompt` and a `marked` response."""
        if not self._writes:
            return
        with self._samples.open("a", encoding="utf-8") as file:
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
        rewritten = self._csv.with_suffix(".csv.tmp")
        with rewritten.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=columns)
            table.writeheader()
            table.writerows(self.rows)
        rewritten.replace(self._csv)

    def close(self) -> None:
        """Writes the table and closes every file."""
        self.write_csv()
        if not self._writes:
            return
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    # A kill may tear a letter, too; and a text may hold what str.splitlines takes for an end of line.
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                logger.warning("%s: left out a line that is not JSON (cut off by a kill?)", path)
    return rows


def _rewrite(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Through a neighbour, so that a kill at this moment loses nothing."""
    rewritten = path.with_suffix(".jsonl.tmp")
    rewritten.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    rewritten.replace(path)


def _tensorboard_writer(directory: Path, resume_step: int) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1 if resume_step else 0)


def _wandb_run(directory: Path, project: str | None) -> Any:
    if project is None:
        return None
    import wandb  # pyright: ignore[reportMissingImports] (an extra)

    # One id a directory, so that a resumed run continues its own curves and no other run of the same name.
    identity = f"{directory.name}-{zlib.crc32(str(directory.resolve()).encode()):08x}"
    return wandb.init(project=project, name=directory.name, dir=str(directory), resume="allow", id=identity)
