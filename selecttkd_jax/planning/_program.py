"""The programs of a configuration, compiled for a machine that is not there: its step, its evaluation, its writing."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import jax
from jax.sharding import Mesh

from selecttkd_jax import runs
from selecttkd_jax.compilation import refused_options
from selecttkd_jax.generation import Sampling
from selecttkd_jax.models import DecoderConfig
from selecttkd_jax.planning._hlo import Program, parse
from selecttkd_jax.planning._machines import described_cudnn
from selecttkd_jax.runs import RunConfig
from selecttkd_jax.sharding import make_mesh, row_devices
from selecttkd_jax.training import Pair


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
        code: The program itself, where it takes the device's memory.
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


@dataclass(frozen=True)
class CompiledDecoding:
    """A program by which a model answers a batch of prompts.

    Attributes:
        program: What one device runs.
        weights: Bytes of the model on one device.
        peak: Bytes of everything on one device.
    """

    program: Program
    weights: int
    peak: int


def compile_step(config: RunConfig, pair: Pair, devices: Sequence[Any]) -> CompiledStep:
    """Compiles the very step that `selecttkd train` would run, on shapes alone.

    Raises:
        InputError: The mesh does not fit the devices, or something does not divide over the mesh.
        TooLargeError: The step does not fit the memory.
    """
    mesh = make_mesh(config.mesh, devices)
    started, worked = time.perf_counter(), time.process_time()
    # Before the mesh is set: a key that is made under it would be made on devices that are not there.
    step, specs = runs.specify_step(config, pair, mesh)
    compiled = _compile(step, (specs.state, specs.frozen, specs.batch), mesh)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    stats = compiled.memory_analysis()
    assert stats is not None
    sizes = {
        "teacher": _local_bytes(specs.frozen.teacher),
        "student": _local_bytes((specs.state.params, specs.frozen.base)),
        "optimizer": _local_bytes(specs.state.opt_state),
    }
    memory = Memory(
        **sizes,
        batch=stats.argument_size_in_bytes - sum(sizes.values()),
        working=stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    return CompiledStep(dict(mesh.shape), _parse(compiled), memory, seconds, cpu_seconds)


def compile_evaluation(config: RunConfig, pair: Pair, devices: Sequence[Any]) -> Program:
    """Compiles the evaluation of a held-out batch as a run would, on shapes alone.

    Raises:
        TooLargeError: It does not fit the memory.
    """
    mesh = make_mesh(config.mesh, devices)
    evaluate, specs = runs.specify_evaluation(config, pair, mesh)
    return _parse(_compile(evaluate, (specs.state.params, specs.frozen, specs.batch), mesh))


def compile_decoding(
    config: RunConfig, decoder: DecoderConfig, sampling: Sampling, rows: int, devices: Sequence[Any], **options: Any
) -> CompiledDecoding:
    """Compiles the program by which a model answers `rows` prompts of the run's longest.

    Raises:
        TooLargeError: It does not fit the memory.
    """
    mesh = make_mesh(config.mesh, devices)
    prompt_length = config.data.max_length - sampling.max_new_tokens
    answer, arguments = runs.specify_decoding(decoder, mesh, sampling, rows, prompt_length, **options)
    compiled = _compile(answer, arguments, mesh)
    stats = compiled.memory_analysis()
    assert stats is not None
    used = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return CompiledDecoding(_parse(compiled), _local_bytes(arguments[0]), used + stats.generated_code_size_in_bytes)


def batch_divisor(config: RunConfig, devices: Sequence[Any]) -> int:
    """Over how many devices the rows of a batch are sharded."""
    return row_devices(make_mesh(config.mesh, devices))


def _compile(function: Any, arguments: tuple[Any, ...], mesh: Mesh) -> jax.stages.Compiled:
    with jax.set_mesh(mesh), described_cudnn(list(mesh.devices.flat)):
        try:
            with refused_options():
                return cast(jax.stages.Wrapped, function).lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLargeError(_first_sentence(str(error))) from None


def _parse(compiled: jax.stages.Compiled) -> Program:
    text = compiled.as_text()
    assert text is not None
    return parse(text)


def _local_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _first_sentence(message: str) -> str:
    return re.sub(r"^RESOURCE_EXHAUSTED: *", "", message).splitlines()[0]
