"""The loop: step, held-out evaluation where due, metrics, checkpoint where due, until the last step."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
import optax

from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError, check_at_least
from selecttkd_jax.data import Batch
from selecttkd_jax.metrics import MetricsWriter, training_means
from selecttkd_jax.training.checkpoint import Checkpoints
from selecttkd_jax.training.state import TrainState
from selecttkd_jax.training.step import TrainStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to look and to save."""

    steps: int = 200
    """Optimizer steps of the whole run."""
    micro_batches: int = 1
    """Parts into which a batch is cut to save memory; the step is the same."""
    head_memory_mib: int | None = None
    """MiB for the logits that exist at once. Left out: 320 on a CPU, 1024 elsewhere."""
    eval_every: int = 50
    """Steps between held-out evaluations; there is one before the first step and one after the last, too."""
    save_every: int = 50
    """Steps between checkpoints; there is one after the last step, too."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    log_every: int = 1
    """Steps between lines in the log, where the log is not a terminal."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "eval_every", "save_every", "keep_checkpoints", "log_every"):
            check_at_least(f"training.{name}", getattr(self, name), 1)
        if self.head_memory_mib is not None:
            check_at_least("training.head_memory_mib", self.head_memory_mib, 1)


class Batches(Iterator[Batch], Protocol):
    """A resumable iterator of batches."""

    def get_state(self) -> dict[str, Any]:
        """The position, as plain JSON data."""
        ...


OnStep = Callable[[int, int, dict[str, float]], None]
"""Told after each step: its number, the last step's number, its metrics."""


def run_loop(
    state: TrainState,
    teacher_params: Params,
    train_step: TrainStep,
    batches: Batches,
    evaluate: Callable[[Params, Params], dict[str, float]],
    writer: MetricsWriter,
    checkpoints: Checkpoints,
    learning_rate: optax.Schedule,
    config: LoopConfig,
    on_step: OnStep,
) -> TrainState:
    """Trains from `state.step` to `config.steps`.

    Args:
        state: Where to begin; donated.
        teacher_params: The frozen teacher.
        train_step: From `make_train_step`.
        batches: Training batches, standing where `state` stands.
        evaluate: Held-out numbers of (student, teacher) parameters.
        writer: Where the rows go: one a step, with `held_out/...` on steps that were evaluated.
        checkpoints: Where the state is saved.
        learning_rate: The schedule, for the record.
        config: Intervals and the last step.
        on_step: Progress display.

    Returns:
        The final state.

    Raises:
        InputError: The loss is not finite. The newest checkpoint is from before.
    """

    def held_out() -> dict[str, float]:
        values = evaluate(state.params, teacher_params)
        return {f"held_out/{name}": value for name, value in values.items()}

    step = int(state.step)
    if step == 0:
        row = {"step": 0, **held_out()}
        writer.write(row)
        on_step(0, config.steps, row)
    while step < config.steps:
        started = time.perf_counter()
        batch = next(batches)
        state, metrics = train_step(state, teacher_params, batch)
        metrics = jax.device_get(metrics)
        elapsed = time.perf_counter() - started
        means = training_means(metrics["sums"])
        row = {
            "step": step + 1,
            **means,
            "grad_norm": float(metrics["grad_norm"]),
            "learning_rate": float(np.asarray(learning_rate(step))),
            "step_seconds": elapsed,
            "tokens_per_second": means["tokens"] / elapsed,
        }
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise InputError(
                f"step {step + 1}: loss {row['loss']}, gradient norm {row['grad_norm']}; lower "
                "optimizer.learning_rate or optimizer.clip_norm and start with a new output"
            )
        step += 1
        last = step == config.steps
        if last or step % config.eval_every == 0:
            row |= held_out()
        writer.write(row)
        if last or step % config.save_every == 0:
            checkpoints.save(state, batches.get_state())
            writer.write_csv()
        on_step(step, config.steps, row)
    return state
