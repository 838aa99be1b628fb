"""A training run, from its configuration to its exported student."""

import importlib.util
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError
from selecttkd_jax._extras import install_command
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax._signals import Signals, open_signals
from selecttkd_jax.compilation import check_options, compile_on_first_call, keep_programs
from selecttkd_jax.metrics import EventLog, MetricsWriter, Row
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs._card import Scores
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._engine import make_engine
from selecttkd_jax.runs._environment import describe_environment
from selecttkd_jax.runs._evaluators import make_held_out, make_rollouts
from selecttkd_jax.runs._export import export, held_out_numbers
from selecttkd_jax.runs._extension import describe_extension
from selecttkd_jax.runs._finished import rows_of_finished
from selecttkd_jax.runs._identity import (
    agreed_facts,
    check_output,
    check_same_ingredients,
    describe_frozen,
    describe_ingredients,
)
from selecttkd_jax.runs._load import load_teacher, trained_weights
from selecttkd_jax.runs._output import check_room, clean_output, lock_output
from selecttkd_jax.runs._prepare import prepare
from selecttkd_jax.runs._rollouts import make_rollout_files
from selecttkd_jax.runs._saved import recorded_steps, save_run
from selecttkd_jax.runs._specs import build_method, choose_attention, choose_packing, make_step, model_shardings
from selecttkd_jax.sharding import check_agreement, make_mesh, place_batch, process_share, row_devices
from selecttkd_jax.sources import EngineWriters, Recorder, RowPacker, Stored, Writers
from selecttkd_jax.training import (
    Checkpoints,
    Explainer,
    Frozen,
    Health,
    Loss,
    Report,
    abstract_state,
    init_state,
    latest_step,
    learning_rate_schedule,
    make_optimizer,
    run_loop,
    state_shardings,
)

logger = logging.getLogger(__name__)

# Less of a batch than this in tokens, and packing is worth a line.
_FULL = 0.7


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: Where everything is.
        student: The exported student, a Hugging Face directory, its adapters merged.
        adapter: The adapters alone, in PEFT's format; None where all weights were trained.
        metrics: `metrics.jsonl`; `metrics.csv` is beside it.
        before: Held-out numbers before the first step; None where their row is lost.
        after: Held-out numbers after the last step.
        plots: The figures; empty without the `plots` extra.
        skipped: Steps whose loss or gradient was not finite, and which changed nothing.
        measure: Which of these numbers training is to lower: `kl`, or `cross_entropy` where the method asks no teacher.
    """

    directory: Path
    student: Path
    adapter: Path | None
    metrics: Path
    before: dict[str, float] | None
    after: dict[str, float]
    plots: list[Path]
    measure: str
    skipped: int = 0

    @property
    def worsened(self) -> bool:
        """Whether `measure` ended above where it began."""
        return self.before is not None and self.after[self.measure] > self.before[self.measure]


def train(config: RunConfig) -> Run:
    """Trains: starts the run in `config.output`, or resumes the one that is there.

    In a run of several processes each of them calls this; only the first one writes.

    Raises:
        InputError: Anything wrong with what the configuration names. Existing files are untouched.
        Interrupted: SIGTERM or SIGINT came (a KeyboardInterrupt). What could be saved is saved.
    """
    keep_programs(config.training.compilation_cache)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), open_signals() as signals, EventLog().listening() as events, ExitStack() as held:
        signals.share()
        config = config.resolved().on_platform(mesh.devices.flat[0].platform)
        return _train_on(mesh, config, signals, events, held)


def _train_on(mesh: Mesh, config: RunConfig, signals: Signals, events: EventLog, held: ExitStack) -> Run:
    """What `train` does, in its order: check, load, build, resume, loop, export."""
    # Check everything before a weight is read or a file written.
    directory = expand_home(config.output)
    check_output(config, directory)
    check_options(config.mesh.compiler_options)
    if (rows := rows_of_finished(directory)) is not None:
        return _finished_run(config, directory, rows)
    if config.logging.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(f"leave logging.wandb_project out, or install W&B; {install_command('wandb')}")
    prepared = prepare(config)
    config = _count_steps(config, prepared.train_rows)
    # What a machine makes of `auto` is no part of the run: it may go on elsewhere.
    written, config = config, choose_packing(config, prepared.pair, mesh)
    prepared = replace(prepared, pair=choose_attention(config, prepared.pair, mesh))
    student_shardings, teacher_shardings = model_shardings(mesh, config, prepared.pair)
    first = jax.process_index() == 0
    rows_by_name = {"training rows": prepared.train_rows, "held-out rows": prepared.held_out_rows}
    if prepared.student_rows is not None:
        rows_by_name["rows of the student's responses"] = prepared.student_rows
    if prepared.corpus_rows is not None:
        rows_by_name["rows of the corpus"] = prepared.corpus_rows
    ingredients = describe_ingredients(prepared.pair, prepared.tokenizer, prepared.stop_ids, rows_by_name)
    check_agreement(agreed_facts(config, ingredients, latest_step(directory / "checkpoints")))
    recorded = recorded_steps(directory)
    if first:
        held.enter_context(lock_output(directory))
        check_output(config, directory)  # again: another process may have trained here until now
        clean_output(directory)
        if latest_step(directory / "checkpoints") is None:
            # A start that saved nothing is as if it had not been.
            (directory / "metrics.jsonl").unlink(missing_ok=True)
            save_run(written, directory)
    events.open(directory, writes=first)

    # Load.
    teacher = load_teacher(mesh, config, prepared.pair, prepared.held_out_rows, teacher_shardings)
    student = models.from_pretrained(config.models.student, jnp.dtype(config.models.student_dtype), student_shardings)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = init_state(trained_weights(mesh, config, student), optimizer, config.seed)
    if config.lora is None:
        # From here on the state's copy is the student; a second one would only take memory.
        student = replace(student, params={})
    frozen = Frozen(teacher=teacher, base=None if config.lora is None else student.params)
    pair = replace(prepared.pair, lora=config.lora)

    # Build the method on the stored rows.
    rows, length = config.data.batch_size, config.data.max_length
    part, parts = process_share(mesh, rows)
    make_batches = data.pack_batches if config.data.packing == "sequences" else data.make_batches
    batches = make_batches(prepared.train_rows, rows, length, config.seed, process_index=part, process_count=parts)
    if isinstance(batches, data.PackedBatches):
        logger.info("%s", batches.summary())
    elif config.data.packing == "off" and prepared.train_rows.fill(length) < _FULL:
        logger.info(
            "%.0f %% of a batch is padding: data.packing = %s puts several rows into a sequence",
            100 * (1 - prepared.train_rows.fill(length)),
            "sequences" if config.reads_one_stream() else "rows",
        )
    longest = max(prepared.train_rows.prompt_lengths)
    write = Writers(mesh, pair, frozen, prepared.stop_ids, longest_prompt=longest, slots=config.training.slots)
    identity = ingredients | describe_frozen(frozen)
    engine = make_engine(config, directory, mesh, prepared, student, state.params, identity, write)
    recorder = Recorder(engine or write, mesh, rows, prepared.stop_ids)
    rollouts = make_rollout_files(
        config.data, directory / "rollouts", batches, prepared.train_rows.sources, prepared.tokenizer, identity
    )

    def store(more: data.Rows | None) -> Stored | None:
        if more is None:
            return None
        taken = data.make_batches(more, rows, length, config.seed, process_index=part, process_count=parts)
        return Stored(taken, data.batch_shapes(rows, length))

    method = build_method(
        config,
        pair,
        mesh,
        Stored(batches, data.batch_shapes(rows, length)),
        recorder,
        frozen,
        rollouts,
        store(prepared.student_rows),  # as many rows and the same seed: the same order
        store(prepared.corpus_rows),
    )
    step = make_step(config, method.loss, optimizer, state_shardings(state.params, optimizer))

    # Resume, if there is something to resume.
    pending: tuple[str, ...] = ()
    if latest_step(directory / "checkpoints") != config.training.steps:
        check_room(directory / "checkpoints", state)
    checkpoints = Checkpoints(directory / "checkpoints", config.training.keep_checkpoints, identity)
    if checkpoints.latest_step is not None:
        template = abstract_state(state)
        del state  # there is not always room for two
        state, position, made_with, pending = checkpoints.restore(template)
        check_same_ingredients(made_with, identity, directory)
        if first:
            save_run(written, directory)  # what may change has changed, such as the number of steps
        method.source.set_state(position)
        logger.info("resuming from step %d", int(state.step))
    began = int(state.step)
    started = "start" if began == 0 else "resume"
    if began and recorded is not None and recorded < config.training.steps:
        said, same = describe_extension(config, recorded, began)
        (logger.info if same else logger.warning)("%s", said)
        started = "extend"
    events.tell(started, step=began, of=config.training.steps, **describe_environment(mesh))

    # Loop.
    held_out = make_held_out(mesh, config, pair, frozen, prepared.held_out_rows)
    place = partial(place_batch, mesh, rows=rows)
    if config.data.packing == "rows":
        place = RowPacker(mesh, rows, config.training.micro_batches * row_devices(mesh))
    writer = MetricsWriter(directory, int(state.step), config.logging.wandb_project, writes=first)
    health = Health(
        config.training.max_skipped,
        config.training.stop_above,
        directory / "bad_batches",
        writer.rows,
        prepared.tokenizer.decode,
        writes=first,
    )
    looks = make_rollouts(mesh, config, pair, frozen, prepared, method.source.shapes, recorder, writer)
    # Until the last checkpoint is whole, a signal waits.
    with signals.deferred(), ExitStack() as closing:
        closing.callback(checkpoints.close)
        closing.callback(writer.close)
        with StepProgress(config.training.log_every, shown=first) as progress:
            state = run_loop(
                state,
                frozen,
                train_step=compile_on_first_call(step),
                source=method.source,
                place=recorder.watch(place),
                evaluators=[held_out, *looks],
                writer=writer,
                checkpoints=checkpoints,
                learning_rate=learning_rate_schedule(config.optimizer, config.training.steps),
                config=config.training,
                on_step=progress,
                explain=partial(_explain, method.loss, frozen),
                report=partial(_report, recorder, engine) if config.method.writes else None,
                health=health,
                signals=signals,
                pending=pending,
            )
        checkpoints.wait()

    if began < int(state.step) or pending:
        events.tell("finish", step=int(state.step))

    # Export.
    evaluated, last = _evaluated(writer.rows), int(state.step)
    before, after = evaluated.get(0), evaluated[last] if last in evaluated else held_out(state.params)
    scores = Scores(step=last, before=before, after=after)
    exported, adapter = export(config, directory, student, state.params, prepared.stop_ids, scores)
    events.tell("export", step=last)
    return Run(
        directory=directory,
        student=exported,
        adapter=adapter,
        metrics=directory / "metrics.jsonl",
        before=before,
        after=after,
        plots=_plot(directory) if first and writer.rows else [],
        measure="kl" if config.method.needs_teacher else "cross_entropy",
        skipped=health.skipped,
    )


def _finished_run(config: RunConfig, directory: Path, rows: list[Row]) -> Run:
    """The run that is there, by its rows and its files."""
    evaluated, adapter, plots = _evaluated(rows), directory / "adapter", directory / "plots"
    return Run(
        directory=directory,
        student=directory / "student",
        adapter=adapter if adapter.is_dir() else None,
        metrics=directory / "metrics.jsonl",
        before=evaluated.get(0),
        after=evaluated[int(rows[-1]["step"])],
        plots=sorted(plots.glob("*.png")),
        measure="kl" if config.method.needs_teacher else "cross_entropy",
        skipped=sum("skipped" in row for row in rows),
    )


def _count_steps(config: RunConfig, rows: data.Rows) -> RunConfig:
    """The configuration with the steps that its epochs take."""
    epochs, batch_size = config.training.epochs, config.data.batch_size
    if epochs is None:
        return config
    sequences = len(rows)
    if config.data.packing == "sequences":
        packed = data.pack_batches(rows, batch_size, config.data.max_length, config.seed)
        sequences = packed.sequences_an_epoch()
    batches = sequences / batch_size
    steps = ceil(epochs * batches)
    logger.info("%g epochs are %d steps: one takes %.1f", epochs, steps, batches)
    return replace(config, training=replace(config.training, steps=steps))


def _report(recorder: Recorder, engine: EngineWriters | None, step: int) -> Report:
    """What is known of the text that was written for a step."""
    report = recorder.report(step)
    return report if engine is None else engine.report(report)


def _explain(loss: Loss, frozen: Frozen, batch: Any) -> str:
    """What the loss says of a batch on which it was not finite, if it can say anything."""
    if not isinstance(loss, Explainer):
        return ""
    try:
        return loss.explain(frozen, batch)
    except Exception as error:  # it compiles a program, for which there may be no memory: then the number alone is told
        logger.debug("no explanation: %s", error)
        return ""


def _evaluated(rows: list[Row]) -> dict[int, dict[str, float]]:
    """The held-out numbers by their steps."""
    return {int(row["step"]): numbers for row in rows if (numbers := held_out_numbers(row))}


def _plot(directory: Path) -> list[Path]:
    try:
        from selecttkd_jax.plotting import plot_run
    except ImportError:
        logger.info("no plots; %s", install_command("plots"))
        return []
    return plot_run(directory)
