"""Whether a run is over, by its record: its rows and its student, whatever became of its checkpoints."""

import logging
from pathlib import Path

from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import Row, read_events, read_metrics
from selecttkd_jax.runs._export import held_out_numbers
from selecttkd_jax.runs._toml import load_config
from selecttkd_jax.training import latest_step

logger = logging.getLogger(__name__)


def is_export_current(directory: Path) -> bool:
    """Whether the exported student is that of the run's end: not of an end from which it was told to go on."""
    kinds = [event.get("event") for event in read_events(directory)]
    told = [kind for kind in kinds if kind in ("extend", "export")]
    return not told or told[-1] == "export"


def rows_of_finished(directory: Path) -> list[Row] | None:
    """The rows of a run that has ended and whose checkpoints are gone; None for any other, and where there is none.

    Raises:
        InputError: Its checkpoints are gone, and it has not ended: it cannot go on, and to begin anew would empty its
            metrics.
    """
    metrics = directory / "metrics.jsonl"
    if latest_step(directory / "checkpoints") is not None or not metrics.is_file():
        return None
    if not (directory / "config.toml").is_file() or not (rows := read_metrics(metrics)):
        return None
    config, last = load_config(directory / "config.toml"), int(rows[-1]["step"])
    exported = [name for name in ("student", "adapter") if (directory / name).is_dir()]
    if exported and last == config.training.steps and held_out_numbers(rows[-1]) and is_export_current(directory):
        logger.info("the run in %s is finished: step %d, and its checkpoints were deleted", directory, last)
        return rows
    # The second save waits for the first, and ends a run whose first one failed: beyond it, there was a checkpoint.
    learnt = sum(row["step"] > 0 and "skipped" not in row for row in rows)  # a save waits for a step that learns
    if exported or learnt > 2 * config.training.save_every:
        raise InputError(
            f"output {directory} holds a run of {last} steps without its checkpoints, so that it cannot go on; put "
            f"{directory / 'checkpoints'} back, or choose another output"
        )
    return None
