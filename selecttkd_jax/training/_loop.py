"""The loop: step, evaluations where due, metrics, checkpoint where due, until the last step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import optax

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.metrics import MetricsWriter, Row
from selecttkd_jax.training._checkpoint import Checkpoints
from selecttkd_jax.training._integrity import check_leaves, list_not_finite
from selecttkd_jax.training._pair import Frozen
from selecttkd_jax.training._protocols import Batch, Describer, Evaluator, Learner, Report, Source
from selecttkd_jax.training._state import TrainState
from selecttkd_jax.training._step import StepMetrics, TrainStep


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to look and to save."""

    steps: int = 200
    """Optimizer steps of the whole run, unless epochs are given."""
    epochs: float | None = None
    """Passes over the training rows, in place of steps; the last one may be a part, for example: 2.5."""
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
    slots: int | None = None
    """Answers written at a time, where a model of the run writes; they change no answer. Left out: as many as the
    memory has room for, at most 32 a device on a CPU and 256 elsewhere."""
    log_every: int = 1
    """Steps between lines in the log, where the log is not a terminal."""
    compilation_cache: str | None = None
    """Folder in which compiled programs are kept, so that the next start need not compile them; off: none. Left out:
    selecttkd_jax in the user's cache directory, of a run of one process. JAX_COMPILATION_CACHE_DIR comes before all."""

    @property
    def head_memory(self) -> int | None:
        """`head_memory_mib` in bytes."""
        return None if self.head_memory_mib is None else self.head_memory_mib * 2**20

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "eval_every", "save_every", "keep_checkpoints", "log_every"):
            check_at_least(f"training.{name}", getattr(self, name), 1)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise InputError(f"training.epochs must be more than 0, got {self.epochs}")
        if self.slots is not None:
            check_at_least("training.slots", self.slots, 1)
        if self.compilation_cache == "":
            raise InputError('training.compilation_cache is empty: name a folder, or "off" to keep no programs')
        if self.head_memory_mib is not None:
            check_at_least("training.head_memory_mib", self.head_memory_mib, 1)


OnStep = Callable[[int, int, Row], None]
"""Told after each step: its number, the last step's number, its metrics."""


class _Running(NamedTuple):
    """A step that was started and not yet looked at."""

    step: int
    metrics: StepMetrics
    batch: Batch
    report: Report | None


def run_loop(
    state: TrainState,
    frozen: Frozen,
    *,
    train_step: TrainStep,
    source: Source,
    place: Callable[[Batch], Batch],
    evaluators: Sequence[Evaluator],
    writer: MetricsWriter,
    checkpoints: Checkpoints,
    learning_rate: optax.Schedule,
    config: LoopConfig,
    on_step: OnStep,
    explain: Callable[[Batch], str] = lambda batch: "",
    report: Callable[[int], Report] | None = None,
) -> TrainState:
    """Trains from `state.step` to `config.steps`.

    A step is started before the metrics of the one before it are fetched, and its batch is placed before that, so that
    an accelerator goes from step to step without waiting for the host. Only a step after which the state itself is
    looked at (an evaluation, a checkpoint, the end) is waited for, since the next one would take its arrays; and every
    step where a model writes the batches, since the text waits for the parameters anyway.

    Args:
        state: Where to begin; donated.
        frozen: What the steps read and do not change.
        train_step: From `make_train_step`.
        source: Training batches, standing where `state` stands.
        place: Puts a batch on the devices.
        evaluators: Their numbers are `name/...` in the rows of the steps after which they are due.
        writer: Where the rows go, one a step.
        checkpoints: Where the state is saved.
        learning_rate: The schedule, for the record.
        config: Intervals and the last step.
        on_step: Progress display.
        explain: Told the batch on which a loss is not finite, says what is known of the cause, or nothing.
        report: Asked after each batch, told the step that takes it, for what is known of its writing. None where nobody
            writes.

    Returns:
        The final state.

    Raises:
        InputError: A loss, or the state after a step, is not finite. The newest checkpoint is from before.
    """
    first, last = int(state.step), config.steps
    mark = time.perf_counter()

    def is_due(evaluator: Evaluator, step: int) -> bool:
        return step in (0, last) or step % evaluator.every == 0

    def is_saved(step: int) -> bool:
        return step == last or step % config.save_every == 0

    def evaluate(step: int) -> Row:
        due = [evaluator for evaluator in evaluators if is_due(evaluator, step)]
        values = {evaluator.name: evaluator(state.params) for evaluator in due}
        return {f"{name}/{key}": value for name, numbers in values.items() for key, value in numbers.items()}

    def finish(running: _Running) -> Row:
        """The row of a step, once it is done; refuses to go on where its loss is not finite."""
        nonlocal mark
        step, metrics = running.step, jax.device_get(running.metrics)
        elapsed, mark = time.perf_counter() - mark, time.perf_counter()
        means = metrics["sums"].means()
        row = {
            "step": step,
            **means,
            "grad_norm": float(metrics["grad_norm"]),
            "learning_rate": _rate(learning_rate, step - 1),
            "step_seconds": elapsed,
            "tokens_per_second": means["tokens"] / elapsed,
        }
        if running.report is not None:
            row |= {"learning_seconds": elapsed - running.report.seconds, **running.report.numbers}
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise InputError(_describe_broken_step(row, _name_batch(source, step), explain(running.batch)))
        return row

    def tell(row: Row) -> None:
        writer.write(row)
        on_step(int(row["step"]), last, row)

    # What the student is before it learns.
    if first == 0 and evaluators:
        row = {"step": 0, **evaluate(0)}
        tell(row)
        if isinstance(source, Learner):
            source.learn(row)
        mark = time.perf_counter()

    # Carried from turn to turn: the state, a batch that was placed ahead, a step whose metrics nobody has seen.
    ahead: Batch | None = None
    running: _Running | None = None
    for step in range(first + 1, last + 1):
        # Start this step, then look at the one before it.
        batch = place(source.next(state)) if ahead is None else ahead
        said = None if report is None else report(step)
        state, metrics = train_step(state, frozen, batch)
        waits = is_saved(step) or any(is_due(evaluator, step) for evaluator in evaluators)
        # Not before an evaluation, from which a source may learn, nor before its position is saved.
        ahead = None if waits or report is not None else place(source.next(state))
        if running is not None:
            tell(finish(running))
        running = _Running(step, metrics, batch, said)
        if ahead is not None:
            continue

        # Wait for it, look at the state, save.
        row, running = finish(running), None
        if not waits:
            tell(row)
            continue
        checks = check_leaves(state)
        if broken := list_not_finite(checks):
            raise InputError(_describe_broken_state(step, broken, _name_batch(source, step)))
        numbers = evaluate(step)
        writer.write(row | numbers)
        if numbers and isinstance(source, Learner):
            source.learn(row | numbers)
        if is_saved(step):
            checkpoints.save(state, source.get_state(), checks)
            writer.write_csv()
        on_step(step, last, row | numbers)
        mark = time.perf_counter()
    return state


def _name_batch(source: Source, step: int) -> str:
    return f" ({source.describe(step)})" if isinstance(source, Describer) else ""


def _describe_broken_step(row: Row, batch: str, cause: str) -> str:
    found = f"step {int(row['step'])}{batch}: loss {row['loss']}, gradient norm {row['grad_norm']}"
    if cause:
        return f"{found}: {cause}"
    return (
        f"{found}; lower optimizer.learning_rate, see that optimizer.clip_norm is above 0, and start with a new output"
    )


def _describe_broken_state(step: int, broken: str, batch: str) -> str:
    return (
        f"step {step}{batch}: the loss was finite, but the update left {broken} with NaN or infinity; nothing of this "
        "step is saved: look at optimizer.learning_rate, eps and weight_decay, and start with a new output"
    )


def _rate(learning_rate: optax.Schedule, step: int) -> float:
    """The schedule's value, computed on the host: an accelerator would get to it after the step that it is at."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        host = None
    with jax.default_device(host):
        return float(np.asarray(learning_rate(step)))
