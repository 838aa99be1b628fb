"""From a configuration to parts to the loop: the one way the command line and the experiments start anything.

Everything that can be wrong is found before a model is loaded: configs, weights' headers, tokenizers, rows.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from selecttkd_jax import data, generation, models
from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError
from selecttkd_jax.compilation import compiled_ahead
from selecttkd_jax.config import RunConfig, agreed_facts, config_to_dict, differences, load_config, save_config
from selecttkd_jax.distill import log_shared_width
from selecttkd_jax.evaluation import HeldOut, held_out_verifiers
from selecttkd_jax.generation import Sampling
from selecttkd_jax.metrics import MetricsWriter
from selecttkd_jax.progress import StepProgress, progress_bar
from selecttkd_jax.sharding import PRESETS, check_agreement, check_rows, make_mesh, place_batch, process_share
from selecttkd_jax.training import (
    Checkpoints,
    StepMetrics,
    TrainState,
    TrainStep,
    abstract_state,
    init_state,
    latest_step,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
    run_loop,
    state_shardings,
    stream_key,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: Where everything is.
        student: The exported student, a Hugging Face directory, its adapters merged.
        adapter: The adapters alone, in PEFT's format; None where all weights were trained.
        metrics: `metrics.jsonl`; `metrics.csv` lies beside it.
        before: Held-out numbers before the first step.
        after: Held-out numbers after the last step.
        plots: The figures; empty without the `plots` extra.
    """

    directory: Path
    student: Path
    adapter: Path | None
    metrics: Path
    before: dict[str, float]
    after: dict[str, float]
    plots: list[Path]


@dataclass(frozen=True)
class Prepared:
    """What is known before a model is loaded."""

    pair: models.Pair
    train_rows: data.Rows
    held_out_rows: data.Rows


def train(config: RunConfig) -> Run:
    """Distils: starts the run in `config.output`, or resumes the one that is there.

    In a run of several processes each of them calls this; only the first one writes.

    Raises:
        InputError: Anything wrong with what the configuration names. Existing files are untouched.
    """
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return _train_on(mesh, config)


def _train_on(mesh: jax.sharding.Mesh, config: RunConfig) -> Run:
    directory = Path(config.output).expanduser()
    check_output(config, directory)
    if config.logging.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError("logging.wandb_project needs W&B: pip install 'selecttkd-jax[wandb]', or leave it out")
    prepared = prepare(config)
    student_shardings, teacher_shardings = model_shardings(mesh, config, prepared.pair)
    first = jax.process_index() == 0
    check_agreement(agreed_facts(config, prepared.train_rows, latest_step(directory / "checkpoints")))
    if first:
        directory.mkdir(parents=True, exist_ok=True)
        save_config(config, directory / "config.toml")
    teacher_params = load_teacher(mesh, config, prepared.pair, prepared.held_out_rows, teacher_shardings)
    student = models.from_pretrained(config.models.student, jnp.dtype(config.models.student_dtype), student_shardings)

    rows = config.data.batch_size
    part, parts = process_share(mesh, rows)
    batches = data.make_batches(
        prepared.train_rows, rows, config.data.max_length, config.seed, process_index=part, process_count=parts
    )
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = init_state(trained_weights(mesh, config, student), optimizer, config.seed)
    if config.lora is None:
        # From here on the state's copy is the student; a second one would only take memory.
        student = replace(student, params={})
    base = student.params if config.lora is not None else None
    checkpoints = Checkpoints(directory / "checkpoints", config.training.keep_checkpoints)
    if checkpoints.latest_step is not None:
        template = abstract_state(state)
        del state  # there is not always room for two
        state, position = checkpoints.restore(template)
        batches.set_state(position)
        logger.info("resuming from step %d", int(state.step))

    pair = replace(prepared.pair, lora=config.lora)
    held_out = make_held_out(mesh, config, pair, prepared.held_out_rows)
    writer = MetricsWriter(directory, int(state.step), config.logging.wandb_project, writes=first)
    step = compiled_ahead(make_step(config, pair, optimizer, state_shardings(state.params, optimizer)))

    def evaluate(trained: Params, teacher_params: Params) -> dict[str, float]:
        return held_out(pair.student_params(trained, base), teacher_params)

    schedule = learning_rate_schedule(config.optimizer, config.training.steps)

    def placed_step(state: TrainState, teacher_params: Params, batch: data.Batch) -> tuple[TrainState, StepMetrics]:
        return step(state, teacher_params, place_batch(mesh, batch, rows), base)

    try:
        with StepProgress(config.training.log_every, shown=first) as progress:
            state = run_loop(
                *(state, teacher_params, placed_step, batches, evaluate),
                *(writer, checkpoints, schedule, config.training, progress),
            )
    finally:
        writer.close()
        checkpoints.close()
    exported, adapter = export(config, directory, student, state.params)
    evaluated = [_held_out_of(row) for row in writer.rows if "held_out/kl" in row]
    metrics, plots = directory / "metrics.jsonl", _plot(directory) if first else []
    return Run(directory, exported, adapter, metrics, evaluated[0], evaluated[-1], plots)


def load_teacher(
    mesh: jax.sharding.Mesh, config: RunConfig, pair: models.Pair, rows: data.Rows, shardings: Params
) -> Params:
    """The teacher's parameters in `models.teacher_dtype`; for int8 the log says what that costs on `rows`."""
    if config.models.teacher_dtype != "int8":
        return models.from_pretrained(config.models.teacher, jnp.dtype(config.models.teacher_dtype), shardings).params
    exact = models.from_pretrained(config.models.teacher, jnp.dtype(config.models.compute_dtype), shardings).params
    params = models.quantize_int8(exact)
    both = models.Pair(student=pair.teacher, teacher=pair.teacher, vocab_size=pair.vocab_size, dtype=pair.dtype)
    cost = make_held_out(mesh, config, both, rows)(params, exact)
    logger.info(
        "int8 teacher: KL(%s teacher || int8 teacher) = %.2e nats, same first choice on %.2f %% of %d held-out tokens",
        config.models.compute_dtype,
        cost["kl"],
        100 * cost["top1_agreement"],
        cost["tokens"],
    )
    return params


def trained_weights(mesh: jax.sharding.Mesh, config: RunConfig, student: models.Pretrained) -> Params:
    """What the optimizer changes: the student's parameters, or fresh adapters of them."""
    if config.lora is None:
        return student.params
    key = stream_key(jax.random.key(config.seed), "adapters", jnp.int32(0))
    init = jax.jit(
        partial(models.init_lora, config.lora, student.config), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    lora = init(student.params, key)
    logger.info("adapters: %.2f M parameters are trained", models.count_params(lora) / 1e6)
    return lora


def export(config: RunConfig, directory: Path, student: models.Pretrained, trained: Params) -> tuple[Path, Path | None]:
    """Writes `student/`, and `adapter/` where adapters were trained; `student` has what `trained` are adapters of."""
    exported, adapter, params = directory / "student", None, trained
    if config.lora is not None:
        adapter = directory / "adapter"
        models.save_adapter(adapter, config.lora, student.config, trained, config.models.student)
        params = models.merge_lora(student.params, trained, config.lora)
    models.save_pretrained(exported, replace(student, params=params), jnp.dtype("float32"))
    logger.info("student exported to %s", exported)
    return exported, adapter


def model_shardings(mesh: jax.sharding.Mesh, config: RunConfig, pair: models.Pair) -> tuple[Params, Params]:
    """Where the student's and the teacher's parameters lie; checks that batches divide over the mesh, too."""
    rows, micro_batches = config.data.batch_size, config.training.micro_batches
    check_rows(mesh, "data.batch_size / training.micro_batches", rows // micro_batches)
    return (
        models.shardings(pair.student, mesh, PRESETS[config.mesh.student]),
        models.shardings(pair.teacher, mesh, PRESETS[config.mesh.teacher]),
    )


def make_step(
    config: RunConfig, pair: models.Pair, optimizer: optax.GradientTransformation, shardings: TrainState | None
) -> TrainStep:
    """The training step of a configuration, whose state lies on the mesh as `shardings` say."""
    head_memory = config.training.head_memory_mib
    return make_train_step(
        pair,
        config.objective.build(),
        optimizer,
        micro_batches=config.training.micro_batches,
        expected=config.objective.expected,
        memory_budget=None if head_memory is None else head_memory * 2**20,
        skip_rejected=config.objective.skip_rejected,
        shardings=shardings,
    )


def check_output(config: RunConfig, directory: Path) -> None:
    """Raises InputError when `directory` holds anything but this very run, or a start that saved nothing yet."""
    if "://" in config.output:
        raise InputError(f"output {config.output} is a URL; name a directory, of storage that is mounted on every host")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"output {directory} is a file; name a directory")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / "config.toml").is_file():
        raise InputError(
            f"output {directory} holds files but no run of ours (no config.toml); choose another directory"
        )
    for name in ("student", "adapter"):
        models.check_replaceable(directory / name)
    if latest_step(directory / "checkpoints") is None:
        return
    there = config_to_dict(load_config(directory / "config.toml"))
    changed = differences(there, config_to_dict(config))
    if changed:
        raise InputError(
            f"output {directory} belongs to a different run: {'; '.join(changed)}; choose another output, or restore "
            "these options to resume"
        )


def prepare(config: RunConfig) -> Prepared:
    """Reads and checks everything but the weights themselves, and says what it found."""
    pair, tokenizer, stops = check_models(config)
    train_records, held_out_records = read_split(config.data)
    train_rows = tokenize(config.data, train_records, tokenizer, stops, "training rows")
    return Prepared(pair, train_rows, tokenize(config.data, held_out_records, tokenizer, stops, "held-out rows"))


def check_models(config: RunConfig) -> tuple[models.Pair, Any, tuple[int, ...]]:
    """Both configs, the headers of the weights, and the tokenizers: what fits together, its tokenizer and stop ids."""
    teacher_config, _ = models.read_config(config.models.teacher)
    student_config, _ = models.read_config(config.models.student)
    for name in (config.models.teacher, config.models.student):
        models.check_weights(name)
    tokenizer = data.load_tokenizer(config.models.teacher)
    student_tokenizer = data.load_tokenizer(config.models.student)
    data.check_same_tokenizer(tokenizer, student_tokenizer)
    if config.data.template == "chat" and student_tokenizer.chat_template != tokenizer.chat_template:
        logger.warning(
            "the chat templates differ: the student learns the teacher's, and its export keeps its own; copy the "
            "teacher's tokenizer files to the student if that is not meant"
        )
    vocab_size = data.tokenizer_size(tokenizer)
    log_shared_width(student_config.vocab_size, teacher_config.vocab_size, vocab_size)
    for role, decoder in (("teacher", teacher_config), ("student", student_config)):
        logger.info("%s: %.1f M parameters, %d layers", role, models.count_params(decoder) / 1e6, decoder.num_layers)
    pair = models.Pair(
        student=student_config,
        teacher=teacher_config,
        vocab_size=vocab_size,
        dtype=config.models.compute_dtype,
        remat=config.models.remat,
    )
    return pair, tokenizer, data.stop_ids(tokenizer, config.models.teacher)


def tokenize(
    config: data.DataConfig, records: list[data.Record], tokenizer: Any, stops: tuple[int, ...], name: str
) -> data.Rows:
    """Rows of `records`, with one line in the log about them."""
    rows = data.tokenize_records(records, tokenizer, config.max_length, stops, config.template)
    logger.info("%s: %s", name, rows.summary())
    if rows.dropped > rows.read // 2:
        logger.warning("%s: more than half were dropped; raise data.max_length", name)
    return rows


def read_held_out(config: data.DataConfig) -> list[data.Record]:
    """The held-out records, and nothing else where they have a file of their own."""
    if config.held_out is None:
        return read_split(config)[1]
    return data.read_records(config.held_out, config.columns, config.held_out_split)[: config.held_out_rows]


def read_split(config: data.DataConfig) -> tuple[list[data.Record], list[data.Record]]:
    """Training and held-out records. Without held-out data of its own, the last rows are held out of training."""
    records = data.read_records(config.train, config.columns, config.train_split)
    if config.held_out is not None:
        held_out = read_held_out(config)
        learned = {repr((record.prompt, record.response)) for record in records}
        known = sum(repr((record.prompt, record.response)) in learned for record in held_out)
        if known:
            logger.warning("%d of %d held-out rows are training rows too: they show memory", known, len(held_out))
        return records, held_out
    if len(records) <= config.held_out_rows:
        raise InputError(
            f"{config.train} has {len(records)} rows, and data.held_out_rows would hold out {config.held_out_rows} of "
            "them; lower it, or name data.held_out"
        )
    return records[: -config.held_out_rows], records[-config.held_out_rows :]


def make_held_out(mesh: jax.sharding.Mesh, config: RunConfig, pair: models.Pair, rows: data.Rows) -> HeldOut:
    """The evaluation of a run: its held-out rows, and the acceptance rates at its own k."""
    # No more rows at once than a training step takes.
    rows_at_once = config.data.batch_size // config.training.micro_batches
    batches = data.eval_batches(rows, rows_at_once, config.data.max_length)
    place = partial(place_batch, mesh, rows=rows_at_once)
    return HeldOut(pair, batches, held_out_verifiers(config.objective.k or 5), place)


def evaluate(config: RunConfig) -> dict[str, float]:
    """Held-out numbers of the student named in `config.models.student`."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        pair, tokenizer, stops = check_models(config)
        student_shardings, teacher_shardings = model_shardings(mesh, config, pair)
        rows = tokenize(config.data, read_held_out(config.data), tokenizer, stops, "held-out rows")
        teacher_params = load_teacher(mesh, config, pair, rows, teacher_shardings)
        student = models.from_pretrained(config.models.student, shardings=student_shardings)
        held_out = make_held_out(mesh, config, pair, rows)
        with progress_bar("evaluating") as advance:
            return held_out(student.params, teacher_params, advance)


def generate(
    model: str,
    records: Sequence[data.Record],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    seed: int = 0,
    template: str = "chat",
    dtype: str = "float32",
) -> list[str]:
    """Lets `model` answer the prompt of each record; returns the texts in the records' order.

    Raises:
        InputError: The model, its tokenizer or a prompt is not usable.
    """
    models.read_config(model)
    models.check_weights(model)
    tokenizer = data.load_tokenizer(model)
    prompts = [data.render_prompt(record, tokenizer, template) for record in records]
    pretrained = models.from_pretrained(model, jnp.dtype(dtype))
    done = 0
    with progress_bar("generating") as advance:

        def count(answered: int) -> None:
            nonlocal done
            done += answered
            advance(done, len(prompts))

        responses = generation.generate(
            pretrained.config,
            pretrained.params,
            prompts,
            sampling=sampling,
            stop_ids=data.stop_ids(tokenizer, model),
            key=jax.random.key(seed),
            batch_size=batch_size,
            progress=count,
        )
    return [tokenizer.decode(response, skip_special_tokens=True).strip() for response in responses]


def _held_out_of(row: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("held_out/"): value for name, value in row.items() if name.startswith("held_out/")}


def _plot(directory: Path) -> list[Path]:
    try:
        from selecttkd_jax.plotting import plot_run
    except ImportError:
        logger.info("no plots: install selecttkd-jax[plots]")
        return []
    return plot_run(directory)
