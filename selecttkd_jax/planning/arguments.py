"""What a training step is called with, as shapes that say where they would lie: nothing is loaded or drawn."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax import data, models, runner
from selecttkd_jax.array_types import Params
from selecttkd_jax.config import RunConfig
from selecttkd_jax.mesh_axes import BATCH_AXES
from selecttkd_jax.training import TrainState, init_state, state_shardings


@dataclass(frozen=True)
class StepArguments:
    """Trees of `jax.ShapeDtypeStruct` with shardings.

    Attributes:
        state: The training state.
        teacher: The teacher's parameters.
        batch: A batch.
        base: What the state's adapters adapt; None where all of the student is trained.
    """

    state: TrainState
    teacher: Params
    batch: data.Batch
    base: Params | None

    @property
    def in_order(self) -> tuple[Any, ...]:
        """As the step takes them."""
        return self.state, self.teacher, self.batch, self.base


def step_arguments(
    config: RunConfig, pair: models.Pair, mesh: Mesh, optimizer: optax.GradientTransformation
) -> tuple[StepArguments, TrainState]:
    """The arguments of a configuration's step, and where its state lies.

    Raises:
        InputError: Something does not divide over the mesh.
    """
    student_shardings, teacher_shardings = runner.model_shardings(mesh, config, pair)
    student = _parameters(pair.student, config.models.student_dtype, student_shardings)
    if config.models.teacher_dtype == "int8":
        teacher = _in_int8(_parameters(pair.teacher, config.models.compute_dtype, teacher_shardings))
    else:
        teacher = _parameters(pair.teacher, config.models.teacher_dtype, teacher_shardings)
    trained, base = student, None
    if config.lora is not None:
        adapters = jax.eval_shape(partial(models.init_lora, config.lora, pair.student), student, jax.random.key(0))
        everywhere = NamedSharding(mesh, PartitionSpec())
        trained, base = jax.tree.map(lambda leaf: _placed(leaf, everywhere), adapters), student
    shardings = state_shardings(trained, optimizer)
    assert shardings is not None
    state = jax.eval_shape(lambda params: init_state(params, optimizer, config.seed), trained)
    state = jax.tree.map(_placed, state, shardings)
    return StepArguments(state, teacher, _batch(config, mesh), base), shardings


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _parameters(decoder: models.DecoderConfig, dtype: str, shardings: Any) -> Params:
    draw = partial(models.init_params, decoder, dtype=jnp.dtype(dtype))
    return jax.tree.map(_placed, jax.eval_shape(draw, jax.random.key(0)), shardings)


def _in_int8(params: Params) -> Params:
    """The parameters quantised: steps lie like the kernel, and so does what remains of it in the scales."""

    def place(before: jax.ShapeDtypeStruct, after: Any) -> Any:
        return jax.tree.map(lambda leaf: _placed(leaf, _where_larger_than_one(leaf, before.sharding)), after)

    return jax.tree.map(place, params, jax.eval_shape(models.quantize_int8, params))


def _where_larger_than_one(leaf: jax.ShapeDtypeStruct, sharding: Any) -> NamedSharding:
    spec = zip(leaf.shape, (*sharding.spec, *[None] * len(leaf.shape)), strict=False)
    return NamedSharding(sharding.mesh, PartitionSpec(*(axis if size > 1 else None for size, axis in spec)))


def _batch(config: RunConfig, mesh: Mesh) -> data.Batch:
    shape = (config.data.batch_size, config.data.max_length)
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    ids, mask = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_))
    return data.Batch(ids, ids, mask, ids, ids)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
