"""What a run leaves for others: the student, and its adapters; at its end, or out of a checkpoint."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax import data, models
from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home, read_json_object
from selecttkd_jax.metrics import held_out_numbers, read_metrics
from selecttkd_jax.runs._card import Scores, student_card
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._identity import describe_frozen
from selecttkd_jax.training import Frozen, in_host_memory, list_steps, read_trained

logger = logging.getLogger(__name__)


def export(
    config: RunConfig,
    directory: Path,
    student: models.Pretrained,
    trained: Params,
    stop_ids: Sequence[int],
    scores: Scores,
) -> tuple[Path, Path | None]:
    """Writes `student/`, and `adapter/` where adapters were trained; `student` has what `trained` are adapters of.

    The student's config files name `stop_ids`, where its training rows end: a base model's own files name the id that
    ends a text, at which a student that was taught to end its turn never stops.
    """
    scores = replace(scores, skipped=_read_scores(directory / "metrics.jsonl", scores.step).skipped)
    return _write(config, student, trained, stop_ids, scores, directory / "student", directory / "adapter")


def export_checkpoint(
    config: RunConfig, step: int | None = None, directory: str | Path | None = None
) -> tuple[Path, Path | None]:
    """Writes the student of one checkpoint as the end of training would, without teacher and optimizer in memory.

    Args:
        config: Of the run (`open_run`).
        step: Of the checkpoint; None takes the newest.
        directory: Where to write; adapters go beside it, into `DIRECTORY-adapter`. None: `OUTPUT/exports/step-N`.

    Returns:
        The model's directory and the adapters', if there are any.

    Raises:
        InputError: There is no such checkpoint, it or the models that the run names are not what they were, or the
            directory holds what an export would destroy.
    """
    output = expand_home(config.output)
    checkpoints = output / "checkpoints"
    if step is None:
        if not (steps := list_steps(checkpoints)):
            raise InputError(f"{checkpoints} holds no checkpoint")
        step = steps[-1]
    target = output / "exports" / f"step-{step}"
    if directory is not None:
        target = Path(os.path.abspath(expand_home(directory)))  # what is beside "." has another name than "."
    beside = Path(f"{target}-adapter")
    models.check_replaceable(target)
    if config.lora is not None:
        models.check_replaceable(beside)
    decoder, hf_config = models.read_config(config.models.student)
    stop_ids = _read_stop_ids(config, output / "student" / "generation_config.json")

    draw = jax.eval_shape(partial(models.init_params, decoder), jax.random.key(0))
    template = draw
    if config.lora is not None:
        template = jax.eval_shape(partial(models.init_lora, config.lora, decoder), draw, jax.random.key(0))
    trained, identity = read_trained(checkpoints, step, in_host_memory(template))
    student = models.Pretrained(decoder, {}, hf_config, models.locate(config.models.student, weights=False))
    if config.lora is not None:
        dtype = jnp.dtype(config.models.student_dtype)
        held = jax.tree.map(lambda leaf: leaf.sharding, in_host_memory(draw))
        student = models.from_pretrained(config.models.student, dtype, held)
        _check_base(config, student.params, identity)
    return _write(config, student, trained, stop_ids, _read_scores(output / "metrics.jsonl", step), target, beside)


def save_student(
    config: RunConfig,
    student: models.Pretrained,
    trained: Params,
    directory: Path,
    *,
    stop_ids: Sequence[int],
    dtype: jnp.dtype,
    card: str | None = None,
) -> None:
    """Writes the student as a model directory, its adapters merged; each process has to call this."""
    params = trained if config.lora is None else models.merge_lora(student.params, trained, config.lora)
    models.save_pretrained(directory, replace(student, params=params), dtype, stop_ids, card)


def _write(
    config: RunConfig,
    student: models.Pretrained,
    trained: Params,
    stop_ids: Sequence[int],
    scores: Scores,
    exported: Path,
    beside: Path,
) -> tuple[Path, Path | None]:
    adapter = None
    if config.lora is not None:
        adapter, card = beside, student_card(config, scores, adapter=True)
        models.save_adapter(adapter, config.lora, student.config, trained, config.models.student, card)
    card, dtype = student_card(config, scores), jnp.dtype("float32")
    save_student(config, student, trained, exported, stop_ids=stop_ids, dtype=dtype, card=card)
    logger.info("student exported to %s", exported)
    return exported, adapter


def _read_stop_ids(config: RunConfig, exported: Path) -> tuple[int, ...]:
    """Where rows end, by the leading model's tokenizer; once that is gone, by what an earlier export has written."""
    leading = config.models.student if config.models.teacher is None else config.models.teacher
    try:
        return data.stop_ids(data.load_tokenizer(leading), leading)
    except InputError as error:
        if not exported.is_file():
            raise
        ids = read_json_object(exported).get("eos_token_id")
        known = [index for index in (ids if isinstance(ids, list) else [ids]) if isinstance(index, int)]
        if not known:
            raise
        logger.warning("%s; where an answer ends is taken from %s", error, exported)
        return tuple(known)


def _check_base(config: RunConfig, base: Params, identity: dict[str, Any]) -> None:
    """Adapters belong to the weights that they were trained on."""
    (name, found), *_ = describe_frozen(Frozen(base=base)).items()
    if identity.get(name) != found:
        raise InputError(
            f"{config.models.student} holds other weights than the adapters were trained on; put those back"
        )


def _read_scores(metrics: Path, step: int) -> Scores:
    """What the rows say of a checkpoint; a line that is no row is left out."""
    rows = read_metrics(metrics, strict=False) if metrics.is_file() else []
    evaluated = {int(row["step"]): numbers for row in rows if (numbers := held_out_numbers(row))}
    skipped = sum("skipped" in row and row["step"] <= step for row in rows)
    return Scores(step, before=evaluated.get(0), after=evaluated.get(step), skipped=skipped)
