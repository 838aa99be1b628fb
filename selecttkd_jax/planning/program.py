"""The training step of a configuration, compiled for a machine that is not there."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import jax

from selecttkd_jax import models, runner
from selecttkd_jax.config import RunConfig
from selecttkd_jax.mesh_axes import BATCH_AXES
from selecttkd_jax.planning.arguments import local_bytes, step_arguments
from selecttkd_jax.planning.hlo import Program, parse
from selecttkd_jax.sharding import make_mesh
from selecttkd_jax.training import make_optimizer


class TooLargeError(Exception):
    """The compiler found no way to fit the step into the device's memory; the message says how much it wants."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        teacher: The teacher's weights.
        student: The student's weights: what is trained in float32, and what adapters leave as it is.
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
        memory: What one device holds.
        seconds: How long lowering and compiling took.
        cpu_seconds: The same in processor time, which other work on the machine does not lengthen.
    """

    mesh: dict[str, int]
    program: Program
    memory: Memory
    seconds: float
    cpu_seconds: float


def compile_step(config: RunConfig, pair: models.Pair, devices: Sequence[Any]) -> CompiledStep:
    """Compiles the very step that `selecttkd train` would run, on shapes alone.

    Raises:
        InputError: The mesh does not fit the devices, or something does not divide over the mesh.
        TooLargeError: The step does not fit the memory.
    """
    mesh = make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    started, worked = time.perf_counter(), time.process_time()
    # Before the mesh is set: a key that is made under it would be made on devices that are not there.
    arguments, shardings = step_arguments(config, pair, mesh, optimizer)
    with jax.set_mesh(mesh):
        step = cast(jax.stages.Wrapped, runner.make_step(config, pair, optimizer, shardings))
        try:
            compiled = step.lower(*arguments.in_order).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLargeError(_first_sentence(str(error))) from None
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats is not None and text is not None
    sizes = {
        "teacher": local_bytes(arguments.teacher),
        "student": local_bytes((arguments.state.params, arguments.base)),
        "optimizer": local_bytes(arguments.state.opt_state),
    }
    memory = Memory(
        **sizes,
        batch=stats.argument_size_in_bytes - sum(sizes.values()),
        working=stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    return CompiledStep(dict(mesh.shape), parse(text), memory, seconds, cpu_seconds)


def batch_divisor(config: RunConfig, devices: Sequence[Any]) -> int:
    """Over how many devices the rows of a batch are divided."""
    mesh = make_mesh(config.mesh, devices)
    return prod(mesh.shape[axis] for axis in BATCH_AXES)


def _first_sentence(message: str) -> str:
    return re.sub(r"^RESOURCE_EXHAUSTED: *", "", message).splitlines()[0]
