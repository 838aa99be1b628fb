"""The loop: step, evaluations where due, metrics, checkpoint where due, until the last step."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._signals import Interrupted, Signals
from selecttkd_jax.metrics import MetricsWriter, Row
from selecttkd_jax.training._checkpoint import Checkpoints
from selecttkd_jax.training._health import Health
from selecttkd_jax.training._integrity import LeafCheck, check_leaves, list_not_finite
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
    max_skipped: int = 5
    """Steps in a row that may be skipped, since their loss or gradient is not finite, before the run stops."""
    stop_above: float | None = None
    """Stops the run where the held-out KL (or cross-entropy) is more than this many times its lowest value so far, for
    example: 1.5. Left out: never."""
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
        check_at_least("training.max_skipped", self.max_skipped, 0)
        if self.stop_above is not None:
            check_at_least("training.stop_above", self.stop_above, 1)
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
    health: Health | None = None,
    signals: Signals | None = None,
    pending: Collection[str] = (),
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
        health: Looks at every row. None: skips what is not finite, and keeps nothing of it.
        signals: Asked after each step whether to end there, with all of it saved.
        pending: The evaluators that were due after `state.step` when it was saved, and not asked (`Restored`).

    Returns:
        The final state.

    Raises:
        InputError: Too many steps in a row were skipped, or the state after a step is not finite, or the student has
            diverged. The newest checkpoint is from before.
        Interrupted: The process was told to end; the state after the last step is saved.
    """
    first, last = int(state.step), config.steps
    mark = time.perf_counter()
    health = health or Health(config.max_skipped, config.stop_above)
    signals = signals or Signals()

    def is_due(evaluator: Evaluator, step: int) -> bool:
        return step in (0, last) or step % evaluator.every == 0

    def is_saved(step: int) -> bool:
        return step == last or step % config.save_every == 0

    def evaluate(due: Sequence[Evaluator], *, ends: bool = False) -> tuple[Row, list[str]]:
        """The numbers of evaluators, and the names of those that are left for the resumed run.

        Left is what can be asked again, where the run `ends` or a signal comes.
        """
        found: dict[str, dict[str, float]] = {}
        left: list[str] = []
        # What cannot be asked again goes first.
        for evaluator in sorted(due, key=_is_repeatable):
            if not _is_repeatable(evaluator):
                found[evaluator.name] = evaluator(state.params)
            elif ends or left:
                left.append(evaluator.name)
            else:
                try:
                    with signals.released():
                        found[evaluator.name] = evaluator(state.params)
                except Interrupted:
                    left.append(evaluator.name)
        named = {evaluator.name: found.get(evaluator.name, {}) for evaluator in due}
        return {f"{name}/{key}": value for name, numbers in named.items() for key, value in numbers.items()}, left

    def lacks(evaluator: Evaluator) -> bool:
        """Whether the last row is without an evaluator's numbers."""
        return not (writer.rows and any(name.startswith(f"{evaluator.name}/") for name in writer.rows[-1]))

    def finish(running: _Running) -> Row:
        """The row of a step, once it is done."""
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
        if metrics["applied"]:
            return health.check(row, _name_batch(source, step))
        return health.skip(row, _name_batch(source, step), running.batch, state.key, explain)

    def tell(row: Row) -> None:
        writer.write(row)
        on_step(int(row["step"]), last, row)

    def save(position: dict[str, Any], left: Sequence[str] = (), checks: Mapping[str, LeafCheck] | None = None) -> None:
        # A row is on the disk before the state that makes nobody take its step again.
        writer.flush()
        checkpoints.save(state, position, checks, pending=left)
        writer.write_csv()

    with signals.deferred():
        # What the student is before it learns; or what an interrupted run did not ask any more.
        if first == 0 and evaluators:
            numbers, left = evaluate(evaluators)
            if left:
                raise signals.stop("nothing was learnt yet")
            row = {"step": 0, **numbers}
            tell(row)
            if isinstance(source, Learner):
                source.learn(row)
        elif asked := [evaluator for evaluator in evaluators if evaluator.name in pending and lacks(evaluator)]:
            numbers, left = evaluate(asked)
            if left:
                raise signals.stop(f"step {first} is saved")
            row = writer.complete(first, numbers)
            health.check_held_out(row)
            if isinstance(source, Learner):
                source.learn(row)
        mark = time.perf_counter()

        # Carried from turn to turn: the state, a batch that was placed ahead, a step whose metrics nobody has seen, and
        # whether a checkpoint was put off.
        ahead: Batch | None = None
        running: _Running | None = None
        owed = False
        for step in range(first + 1, last + 1):
            # Start this step, then look at the one before it.
            if ahead is not None:
                batch = ahead
            elif report is None:
                batch = place(source.next(state))
            else:
                # A model writes, which takes long; what a signal interrupts there is written again.
                before = source.get_state() if signals.opened else {}
                try:
                    with signals.released():
                        batch = place(source.next(state))
                except Interrupted:
                    if step > 1 and not health.skipping:
                        save(before)
                    raise signals.stop(_tell_kept(checkpoints.latest_step)) from None
            said = None if report is None else report(step)
            state, metrics = train_step(state, frozen, batch)
            ends = signals.reached(step)
            waits = ends or owed or is_saved(step) or any(is_due(evaluator, step) for evaluator in evaluators)
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
            numbers, left = evaluate([each for each in evaluators if is_due(each, step)], ends=ends)
            row |= numbers
            writer.write(row)
            health.check_held_out(row)
            if numbers and not left and isinstance(source, Learner):
                source.learn(row)
            ends = ends or bool(left)
            due = ends or owed or is_saved(step)
            # Not of a state that may be what is wrong.
            owed = due and health.skipping and step != last
            if due and not owed:
                save(source.get_state(), left, checks)
            on_step(step, last, row)
            if ends:
                raise signals.stop(_tell_kept(checkpoints.latest_step))
            mark = time.perf_counter()
    return state


def _name_batch(source: Source, step: int) -> str:
    return f" ({source.describe(step)})" if isinstance(source, Describer) else ""


def _is_repeatable(evaluator: Evaluator) -> bool:
    return getattr(evaluator, "repeatable", False)


def _tell_kept(step: int | None) -> str:
    return "nothing was saved yet" if step is None else f"step {step} is saved"


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
