"""What a finished run leaves for others: the student, and its adapters."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp

from selecttkd_jax import models
from selecttkd_jax._array_types import Params
from selecttkd_jax.runs._config import RunConfig

logger = logging.getLogger(__name__)


def export(
    config: RunConfig, directory: Path, student: models.Pretrained, trained: Params, stop_ids: Sequence[int]
) -> tuple[Path, Path | None]:
    """Writes `student/`, and `adapter/` where adapters were trained; `student` has what `trained` are adapters of.

    The student's config files name `stop_ids`, where its training rows end: a base model's own files name the id that
    ends a text, at which a student that was taught to end its turn never stops.
    """
    exported, adapter = directory / "student", None
    if config.lora is not None:
        adapter = directory / "adapter"
        models.save_adapter(adapter, config.lora, student.config, trained, config.models.student)
    save_student(config, student, trained, exported, stop_ids=stop_ids, dtype=jnp.dtype("float32"))
    logger.info("student exported to %s", exported)
    return exported, adapter


def save_student(
    config: RunConfig,
    student: models.Pretrained,
    trained: Params,
    directory: Path,
    *,
    stop_ids: Sequence[int],
    dtype: jnp.dtype,
) -> None:
    """Writes the student as a model directory, its adapters merged; each process has to call this."""
    params = trained if config.lora is None else models.merge_lora(student.params, trained, config.lora)
    models.save_pretrained(directory, replace(student, params=params), dtype, stop_ids)
