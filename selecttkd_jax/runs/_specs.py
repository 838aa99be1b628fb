"""What a run's step is called with, as shapes that say where they are placed: nothing is loaded or drawn.

A run loads its weights by these, and a plan compiles its step from them: both have the same step by construction.
"""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax import data, generation, models
from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import BATCH_AXES
from selecttkd_jax.evaluation import HeldOut, HeldOutProgram, held_out_verifiers
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import Parts
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.sharding import PRESETS, check_rows
from selecttkd_jax.sources import MakeWriter, RolloutFiles, Unread, unwritten
from selecttkd_jax.training import (
    Frozen,
    Loss,
    Method,
    Pair,
    Source,
    TrainState,
    TrainStep,
    init_state,
    make_optimizer,
    make_train_step,
    state_shardings,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSpecs:
    """The arguments of a step as trees of `jax.ShapeDtypeStruct` with shardings, in the order in which it takes them.

    Attributes:
        state: The training state.
        frozen: The teacher's parameters, and what the state's adapters adapt.
        batch: A batch.
    """

    state: TrainState
    frozen: Frozen
    batch: Any


def abstract_pair(config: RunConfig) -> Pair:
    """The pair of models as far as their `config.json` says."""
    student = models.read_config(config.models.student)[0]
    teacher = None if config.models.teacher is None else models.read_config(config.models.teacher)[0]
    return Pair(
        student=student,
        teacher=teacher,
        # A tokenizer that is smaller still would mask some more columns and change no size.
        vocab_size=min(student.vocab_size, (teacher or student).vocab_size),
        dtype=config.models.compute_dtype,
        remat=config.models.remat,
        lora=config.lora,
    )


def choose_packing(config: RunConfig, pair: Pair, mesh: Mesh) -> RunConfig:
    """The configuration with `data.packing` as these devices have it, where it says `auto`.

    Rows share sequences where an attention kernel keeps them apart: scores that are written out cost a long sequence
    more than its padding.
    """
    if config.data.packing != "auto":
        return config
    try:
        attention, _ = _find_attention(config, pair, mesh, packed=True)
    except InputError:  # what was asked for serves other rows
        attention = "xla"
    a_row_each = config.selection is not None and config.selection.per_sequence
    packing = "off" if attention == "xla" or a_row_each else "rows"
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing=packing))


def choose_attention(config: RunConfig, pair: Pair, mesh: Mesh) -> Pair:
    """The pair with the attention that serves both of its models on these devices; the log says which.

    Args:
        config: From `choose_packing`.
        pair: The models.
        mesh: The devices.

    Raises:
        InputError: One was asked for that cannot serve.
    """
    attention, why = _find_attention(config, pair, mesh, packed=config.data.packing != "off")
    logger.info("computing in %s; attention: %s (%s)", pair.dtype, attention, why)
    return dataclasses.replace(pair, attention=attention)


def _find_attention(config: RunConfig, pair: Pair, mesh: Mesh, *, packed: bool) -> tuple[str, str]:
    decoders = [decoder for decoder in (pair.student, pair.teacher) if decoder is not None]
    device = mesh.devices.flat[0]
    return models.choose_attention(
        config.models.attention,
        device.platform,
        pair.dtype,
        *decoders,
        tensor=mesh.shape["tensor"],
        packed=packed,
        length=config.data.max_length,
        capability=getattr(device, "compute_capability", None),  # only GPUs have one
    )


def build_method(
    config: RunConfig,
    pair: Pair,
    mesh: Mesh,
    stored: Source | None = None,
    write: MakeWriter = unwritten,
    frozen: Frozen = Frozen(),  # noqa: B008 (a tuple)
    rollouts: RolloutFiles | None = None,
    stored_student: Source | None = None,
    corpus: Source | None = None,
) -> Method:
    """The run's method; without `stored` rows, one whose loss can be compiled and whose source has shapes alone."""
    parts = Parts(
        pair=pair,
        objective=config.objective,
        stored=stored or Unread(data.batch_shapes(config.data.batch_size, config.data.max_length)),
        memory_budget=config.training.head_memory,
        mesh=mesh,
        steps=config.training.steps,
        write=write,
        frozen=frozen,
        rollouts=rollouts,
        stored_student=stored_student,
        corpus=corpus,
        packed=config.data.packing != "off",
        selection=config.selection,
    )
    return config.method.build(parts)


def make_step(
    config: RunConfig, loss: Loss, optimizer: optax.GradientTransformation, shardings: TrainState | None
) -> TrainStep:
    """The training step of a configuration, for a state of these shardings."""
    return make_train_step(
        loss,
        optimizer,
        micro_batches=config.training.micro_batches,
        shardings=shardings,
        compiler_options=config.mesh.compiler_options,
    )


def model_shardings(mesh: Mesh, config: RunConfig, pair: Pair) -> tuple[Params, Params | None]:
    """The shardings of the student's and the teacher's parameters; checks that batches divide over the mesh, too."""
    rows, micro_batches = config.data.batch_size, config.training.micro_batches
    check_rows(mesh, "data.batch_size / training.micro_batches", rows // micro_batches)
    student = models.shardings(pair.student, mesh, PRESETS[config.mesh.student])
    if pair.teacher is None:
        return student, None
    return student, models.shardings(pair.teacher, mesh, PRESETS[config.mesh.teacher])


def specify_step(config: RunConfig, pair: Pair, mesh: Mesh) -> tuple[TrainStep, StepSpecs]:
    """The very step that a run of this configuration takes, and its arguments.

    Raises:
        InputError: Something does not divide over the mesh.
    """
    config = choose_packing(config, pair, mesh)
    pair = choose_attention(config, pair, mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    method = build_method(config, pair, mesh)
    shapes = _put_together(method.source.shapes) if config.data.packing == "rows" else method.source.shapes
    specs, shardings = _arguments(config, pair, mesh, optimizer, shapes)
    return make_step(config, method.loss, optimizer, shardings), specs


def specify_evaluation(config: RunConfig, pair: Pair, mesh: Mesh) -> tuple[HeldOutProgram, StepSpecs]:
    """The program by which a run evaluates a held-out batch, and its arguments: of the state only `params` is taken."""
    pair = choose_attention(choose_packing(config, pair, mesh), pair, mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    shapes = data.batch_shapes(config.data.batch_size // config.training.micro_batches, config.data.max_length)
    specs, _ = _arguments(config, pair, mesh, optimizer, shapes)
    verifiers = held_out_verifiers(config.objective.k or 5)
    return HeldOut(pair, Frozen(), (), verifiers, memory_budget=config.training.head_memory).program, specs


def specify_decoding(
    decoder: models.DecoderConfig,
    mesh: Mesh,
    sampling: Sampling,
    rows: int,
    prompt_length: int,
    *,
    vocab_size: int | None = None,
    in_int8: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program by which a model answers `rows` prompts, and its arguments, the weights first."""
    dtype = generation.default_dtype(mesh)
    params = _parameters(decoder, dtype.name, models.shardings(decoder, mesh, PRESETS["tensor"]))
    params = _layer_by_layer(_in_int8(params) if in_int8 else params)
    by_rows, everywhere = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), NamedSharding(mesh, PartitionSpec())
    ids = jax.ShapeDtypeStruct((rows, prompt_length), np.int32, sharding=by_rows)
    mask = jax.ShapeDtypeStruct((rows, prompt_length), np.bool_, sharding=by_rows)
    stop_ids = jax.ShapeDtypeStruct((8,), np.int32, sharding=everywhere)
    numbers = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), rows)))
    static = {"sampling": sampling, "vocab_size": vocab_size, "dtype": dtype}

    @jax.jit
    def answer(params: Params, ids: Any, mask: Any, stop_ids: Any, numbers: Any) -> Any:
        return generation.decode(decoder, params, ids, mask, stop_ids, jax.random.wrap_key_data(numbers), **static)

    return answer, (params, ids, mask, stop_ids, _placed(numbers, by_rows))


def _arguments(
    config: RunConfig, pair: Pair, mesh: Mesh, optimizer: optax.GradientTransformation, shapes: Any
) -> tuple[StepSpecs, TrainState]:
    """The arguments of a step whose whole batches have `shapes`, and the shardings of its state."""
    student_shardings, teacher_shardings = model_shardings(mesh, config, pair)
    student = _parameters(pair.student, config.models.student_dtype, student_shardings)
    teacher = None
    if pair.teacher is not None:
        in_int8 = config.models.teacher_dtype == "int8"
        dtype = config.models.compute_dtype if in_int8 else config.models.teacher_dtype
        teacher = _parameters(pair.teacher, dtype, teacher_shardings)
        teacher = _in_int8(teacher) if in_int8 else teacher
    trained, base = student, None
    if config.lora is not None:
        adapters = jax.eval_shape(partial(models.init_lora, config.lora, pair.student), student, jax.random.key(0))
        everywhere = NamedSharding(mesh, PartitionSpec())
        trained, base = jax.tree.map(lambda leaf: _placed(leaf, everywhere), adapters), student
    shardings = state_shardings(trained, optimizer)
    assert shardings is not None
    state = jax.eval_shape(lambda params: init_state(params, optimizer, config.seed), trained)
    state = jax.tree.map(_placed, state, shardings)
    by_rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    batch = jax.tree.map(lambda leaf: _placed(leaf, by_rows), shapes)
    return StepSpecs(state=state, frozen=Frozen(teacher=teacher, base=base), batch=batch), shardings


def _put_together(shapes: Any) -> Any:
    """The shapes of batches whose rows share sequences, as many as there may be, as `sources.RowPacker` makes them."""

    def mark(node: Any) -> Any:
        if isinstance(node, data.Batch):
            return dataclasses.replace(node, unpacked=data.Unpacked(node.input_ids, rows=node.input_ids.shape[0]))
        if not isinstance(node, data.Responses):
            return node
        teacher, student = mark(node.teacher), mark(node.student)
        # A skew of a row becomes one of each of its tokens.
        alphas = {
            name: None if skews is None else jax.ShapeDtypeStruct(rows.input_ids.shape, jnp.float32)
            for name, skews, rows in (
                ("teacher_alpha", node.teacher_alpha, teacher),
                ("student_alpha", node.student_alpha, student),
            )
        }
        return data.Responses(teacher, student, **alphas)

    return jax.tree.map(mark, shapes, is_leaf=lambda node: isinstance(node, data.Batch | data.Responses))


def _parameters(decoder: models.DecoderConfig, dtype: str, shardings: Any) -> Params:
    draw = partial(models.init_params, decoder, dtype=jnp.dtype(dtype))
    return jax.tree.map(_placed, jax.eval_shape(draw, jax.random.key(0)), shardings)


def _layer_by_layer(params: Params) -> Params:
    """The parameters as `generation.lay_out` places them."""

    def of_one(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)

    layers = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": tuple(jax.tree.map(of_one, params["layers"]) for _ in range(layers))}


def _in_int8(params: Params) -> Params:
    """The parameters quantised: steps are placed like the kernel, and so is what remains of it in the scales."""

    def place(before: jax.ShapeDtypeStruct, after: Any) -> Any:
        return jax.tree.map(lambda leaf: _placed(leaf, _where_larger_than_one(leaf, before.sharding)), after)

    return jax.tree.map(place, params, jax.eval_shape(models.quantize_int8, params))


def _where_larger_than_one(leaf: jax.ShapeDtypeStruct, sharding: Any) -> NamedSharding:
    spec = zip(leaf.shape, (*sharding.spec, *[None] * len(leaf.shape)), strict=False)
    return NamedSharding(sharding.mesh, PartitionSpec(*(axis if size > 1 else None for size, axis in spec)))


def _placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
