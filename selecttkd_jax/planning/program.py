"""The training step of a configuration, compiled for a machine that is not there."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax import data, models, runner
from selecttkd_jax.config import RunConfig
from selecttkd_jax.planning.hlo import Program, parse
from selecttkd_jax.sharding import make_mesh
from selecttkd_jax.sharding.constraints import BATCH_AXES
from selecttkd_jax.training import init_state, make_optimizer, state_shardings


class TooLargeError(Exception):
    """The compiler found no way to fit the step into the device's memory; the message says how much it wants."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        teacher: The teacher's weights.
        student: The student's master weights.
        optimizer: The optimizer's moments.
        batch: The batch, the step and the key.
        working: Activations, gradients, gathered weights and logits, as far as they exist at the same time.
        code: The program itself, where it lies in the device's memory.
    """

    teacher: int
    student: int
    optimizer: int
    batch: int
    working: int
    code: int

    @property
    def peak(self) -> int:
        """All of it: the most that is needed at any one time."""
        return self.teacher + self.student + self.optimizer + self.batch + self.working + self.code


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step.

    Attributes:
        mesh: Axis -> size.
        program: What one device runs.
        text: The same as HLO text.
        memory: What one device holds.
        seconds: How long lowering and compiling took.
    """

    mesh: dict[str, int]
    program: Program
    text: str
    memory: Memory
    seconds: float


def compile_step(config: RunConfig, pair: models.Pair, devices: Sequence[Any]) -> CompiledStep:
    """Compiles the very step that `selecttkd train` would run, on shapes alone.

    Raises:
        InputError: The mesh does not fit the devices, or the batch does not divide over the mesh.
        TooLargeError: The step does not fit the memory.
    """
    mesh = make_mesh(config.mesh, devices)
    student, teacher = _abstract_params(config, pair, mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    shardings = state_shardings(student, optimizer)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, config.seed), student)
    state = jax.tree.map(_placed, state, shardings)
    batch = _abstract_batch(config, mesh)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        step = cast(jax.stages.Wrapped, runner.make_step(config, pair, optimizer, shardings))
        try:
            compiled = step.lower(state, teacher, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLargeError(_first_sentence(str(error))) from None
    seconds = time.perf_counter() - started
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats is not None and text is not None
    held = {"teacher": teacher, "student": state.params, "optimizer": state.opt_state}
    sizes = {name: local_bytes(tree) for name, tree in held.items()}
    beyond_arguments = stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    memory = Memory(
        **sizes,
        batch=stats.argument_size_in_bytes - sum(sizes.values()),
        working=beyond_arguments,
        code=stats.generated_code_size_in_bytes,
    )
    return CompiledStep(dict(mesh.shape), parse(text), text, memory, seconds)


def batch_divisor(config: RunConfig, devices: Sequence[Any]) -> int:
    """Over how many devices the rows of a batch are divided."""
    mesh = make_mesh(config.mesh, devices)
    return prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _abstract_params(config: RunConfig, pair: models.Pair, mesh: Mesh) -> tuple[Any, Any]:
    shardings = runner.model_shardings(mesh, config, pair)
    shapes = (
        jax.eval_shape(partial(models.init_params, decoder, dtype=jnp.dtype(dtype)), jax.random.key(0))
        for decoder, dtype in ((pair.student, "float32"), (pair.teacher, config.models.teacher_dtype))
    )
    student, teacher = (jax.tree.map(_placed, *one) for one in zip(shapes, shardings, strict=True))
    return student, teacher


def _abstract_batch(config: RunConfig, mesh: Mesh) -> data.Batch:
    shape = (config.data.batch_size, config.data.max_length)
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    ids, mask = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_))
    return data.Batch(ids, ids, mask, ids, ids)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _first_sentence(message: str) -> str:
    return re.sub(r"^RESOURCE_EXHAUSTED: *", "", message).splitlines()[0]
