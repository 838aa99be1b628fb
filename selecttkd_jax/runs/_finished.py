"""Whether a run is over, by its record: its rows and its student, whatever became of its checkpoints."""

import logging
from pathlib import Path

from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import Row, read_metrics
from selecttkd_jax.runs._toml import load_config
from selecttkd_jax.training import latest_step

logger = logging.getLogger(__name__)


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
    if exported and last == config.training.steps:
        logger.info("the run in %s is finished: step %d, and its checkpoints were deleted", directory, last)
        return rows
    # The second save waits for the first, and ends a run whose first one failed: beyond it, there was a checkpoint.
    if exported or last > 2 * config.training.save_every:
        raise InputError(
            f"output {directory} holds a run of {last} steps without its checkpoints, so that it cannot go on; put "
            f"{directory / 'checkpoints'} back, or choose another output"
        )
    return None
