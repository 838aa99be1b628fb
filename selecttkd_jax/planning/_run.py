"""What a whole run costs on a target: its steps and evaluations, its padding, and the text that models write."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from selecttkd_jax import runs
from selecttkd_jax.generation import Sampling
from selecttkd_jax.planning._estimate import Estimate, estimate, sweep_rounds
from selecttkd_jax.planning._hlo import Instruction, Program
from selecttkd_jax.planning._program import (
    CompiledStep,
    batch_divisor,
    compile_decoding,
    compile_evaluation,
    compile_step,
)
from selecttkd_jax.planning._targets import Target
from selecttkd_jax.planning._timeline import lay_out_timeline
from selecttkd_jax.runs import RunConfig
from selecttkd_jax.sharding import make_mesh
from selecttkd_jax.sources import RowPacker
from selecttkd_jax.training import Pair

# How full the rows of a batch make the sequences that they share: 64 of GSM8K fill 95 % of 512 tokens.
PACKED_FILL = 0.95
# Answers that a device of `selecttkd generate` writes at a time, where there is room.
SLOTS = 256


@dataclass(frozen=True)
class RunCosts:
    """Of a whole run, at least.

    Attributes:
        steps: How many it takes.
        step_seconds: Of each.
        evaluations: How often it evaluates.
        evaluation_seconds: Of each.
        devices: That it occupies.
    """

    steps: int
    step_seconds: float
    evaluations: int
    evaluation_seconds: float
    devices: int

    @property
    def hours(self) -> float:
        """Steps and evaluations; loading, compiling, saving and writing text come on top."""
        return (self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds) / 3600

    @property
    def device_hours(self) -> float:
        """Of all devices together."""
        return self.devices * self.hours


@dataclass(frozen=True)
class Padding:
    """What padding costs, and what packing makes of it.

    Attributes:
        fill: The share of a row that is no padding.
        costs: Of a step whose rows are so full and have a sequence each.
        packed: Of a step on the same rows that share sequences; None where they cannot.
        sequences: How many they share.
    """

    fill: float
    costs: Estimate
    packed: Estimate | None
    sequences: int

    @property
    def gain(self) -> float | None:
        """How many times less time the same rows take when they are packed."""
        if self.packed is None or self.costs.step_seconds is None or self.packed.step_seconds is None:
            return None
        return self.costs.step_seconds / self.packed.step_seconds


@dataclass(frozen=True)
class Writing:
    """What it takes a model to answer a batch of prompts, all of them to the last token.

    Attributes:
        role: Which model.
        rows: Prompts.
        prompt_length: Tokens of each.
        new_tokens: Tokens of each answer.
        weights: Bytes of the model on a device.
        peak: Bytes of everything on a device.
        prefill_seconds: Until the first token; None where the target states no rates.
        token_seconds: For a further token of every answer.
    """

    role: str
    rows: int
    prompt_length: int
    new_tokens: int
    weights: int
    peak: int
    prefill_seconds: float | None
    token_seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens a second, over all devices."""
        if self.prefill_seconds is None or self.token_seconds is None:
            return None
        return self.rows * self.new_tokens / (self.prefill_seconds + (self.new_tokens - 1) * self.token_seconds)


def run_costs(
    config: RunConfig, pair: Pair, target: Target, devices: Sequence[Any], step: CompiledStep, costs: Estimate
) -> RunCosts | None:
    """The whole run, of `training.steps`; None where the target states no rates."""
    if costs.step_seconds is None:
        return None
    program, count = compile_evaluation(config, pair, devices), prod(step.mesh.values())
    rows = config.data.batch_size // config.training.micro_batches
    positions = rows * config.data.max_length // (step.mesh["data"] * step.mesh["fsdp"])
    once = lay_out_timeline(program, target.device, count, sweep_rounds(positions)).seconds
    # One before the first step, and one after the last, which may be one of the others.
    evaluations = 1 + ceil(config.training.steps / config.training.eval_every)
    return RunCosts(
        steps=config.training.steps,
        step_seconds=costs.step_seconds,
        evaluations=evaluations,
        evaluation_seconds=ceil(config.data.held_out_rows / rows) * once,
        devices=count,
    )


def padding(
    config: RunConfig, pair: Pair, target: Target, devices: Sequence[Any], step: CompiledStep, fill: float
) -> Padding:
    """What a step costs whose rows fill `fill` of it, and what it costs when they share sequences.

    Args:
        config: From `runs.choose_packing`.
        pair: Its models.
        target: What has to hold it.
        devices: The target's.
        step: The configured one.
        fill: The share of a row that is no padding.
    """
    rows = config.data.batch_size
    unit = config.training.micro_batches * batch_divisor(config, devices)
    sizes = RowPacker(make_mesh(config.mesh, devices), rows, unit).sizes()
    sequences = next(size for size in sizes if size >= min(rows, rows * fill / PACKED_FILL))

    def told(packing: str, batch_size: int) -> Estimate:
        # Packed rows may need another attention than the configured one.
        models = replace(config.models, attention="auto" if packing != config.data.packing else config.models.attention)
        chosen = replace(config, data=replace(config.data, packing=packing, batch_size=batch_size), models=models)
        compiled = step if chosen == config else compile_step(chosen, pair, devices)
        return estimate(chosen, target, compiled, fill=rows * fill / batch_size)

    ranked_alone = config.selection is not None and config.selection.per_sequence
    return Padding(fill, told("off", rows), None if ranked_alone else told("rows", sequences), sequences)


def writing(config: RunConfig, pair: Pair, target: Target, devices: Sequence[Any]) -> list[Writing]:
    """What each model takes to write for a step of the run's method, or the teacher for `selecttkd generate`."""
    sampling = config.method.sampling
    if sampling is None or not config.method.writes:
        most = Sampling().max_new_tokens
        sampling, roles = Sampling(max_new_tokens=min(most, config.data.max_length // 2)), ("teacher",)
        rows = SLOTS * batch_divisor(config, devices)
    else:
        roles, rows = config.method.writes, config.data.batch_size
    runs.check_room(sampling.max_new_tokens, config.data.max_length)
    found = []
    for role in roles:
        decoder = pair.student if role == "student" else pair.teacher
        if decoder is None:
            continue
        in_int8 = role == "teacher" and config.models.teacher_dtype == "int8"
        options = {"vocab_size": pair.vocab_size, "in_int8": in_int8}
        compiled = compile_decoding(config, decoder, sampling, rows, devices, **options)
        # `selecttkd generate` takes as many rows as there is room for.
        while not config.method.writes and compiled.peak > target.device.usable_memory and rows > len(devices):
            rows //= 2
            compiled = compile_decoding(config, decoder, sampling, rows, devices, **options)
        first = _seconds(compiled.program, target, len(devices), 0)
        more = _seconds(compiled.program, target, len(devices), 1)
        found.append(
            Writing(
                role=role,
                rows=rows,
                prompt_length=config.data.max_length - sampling.max_new_tokens,
                new_tokens=sampling.max_new_tokens,
                weights=compiled.weights,
                peak=compiled.peak,
                prefill_seconds=first,
                token_seconds=None if first is None or more is None else more - first,
            )
        )
    return found


def _seconds(program: Program, target: Target, devices: int, turns: int) -> float | None:
    """How long a decoding takes whose loop goes round so often."""
    if not target.device.memory_rate:
        return None

    def rounds(loop: Instruction) -> int:
        del loop
        return turns

    return lay_out_timeline(program, target.device, devices, rounds).seconds
