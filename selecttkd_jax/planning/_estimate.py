"""What a compiled step costs on a target: operations, traffic, and the least time of its kernels and collectives."""

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from selecttkd_jax.planning._collectives import Traffic, collective_traffic
from selecttkd_jax.planning._hlo import Instruction, Rounds
from selecttkd_jax.planning._program import CompiledStep
from selecttkd_jax.planning._targets import Target
from selecttkd_jax.planning._timeline import Timeline, lay_out_timeline
from selecttkd_jax.runs import RunConfig

_SWEEP = re.compile(r"(whole|rest|kept)_(\d+)_of_(\d+)")


@dataclass(frozen=True)
class Estimate:
    """Of one device and one step.

    Attributes:
        timeline: What its kernels do and how long they and its collectives take; no time where the target states no
            rates.
        traffic: By kind of collective and size of its groups.
        tokens: Tokens of a whole batch, padding among them.
        timed: Whether the target states its rates.
    """

    timeline: Timeline
    traffic: dict[tuple[str, int], Traffic]
    tokens: int
    timed: bool

    @property
    def flops(self) -> Counter[str]:
        """Operations of matrix products, by dtype of their operands."""
        return self.timeline.flops

    @property
    def memory_bytes(self) -> int:
        """Bytes to and from memory."""
        return sum(part.moved for part in self.timeline.parts.values())

    @property
    def step_seconds(self) -> float | None:
        """The least time of a step: every kernel at its peak rate, and what of the collectives none covers."""
        return self.timeline.seconds if self.timed else None

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens a second, over all devices, padding among them."""
        return None if self.step_seconds is None else self.tokens / self.step_seconds


def estimate(config: RunConfig, target: Target, step: CompiledStep, *, fill: float = 1.0) -> Estimate:
    """Counts what `step` does, by the target's peak rates.

    Args:
        config: The run.
        target: Its machine.
        step: Compiled for it.
        fill: The share of positions that carry loss: the fused head visits no others.
    """
    rounds = sweep_rounds(round(fill * _positions_per_sweep(config, step)))
    devices, device = prod(step.mesh.values()), target.device
    rates = (device.flops, device.flops_float32, device.memory_rate, device.link_rate, device.hosts_rate)
    return Estimate(
        timeline=lay_out_timeline(step.program, device, devices, rounds),
        traffic=collective_traffic(step.program, devices, rounds, per_host=device.per_host),
        tokens=config.data.batch_size * config.data.max_length,
        timed=all(rates),
    )


def sweep_rounds(positions: int) -> Rounds:
    """How often the fused head's loops go round when `positions` carry loss.

    They visit positions that carry loss and no others, so their number of rounds is only known with the data; the
    scopes in which they are written say how many positions a round takes (`distill.sweep`).
    """

    def rounds(loop: Instruction) -> int:
        labels = _SWEEP.findall(loop.attributes)
        if not labels:
            return 1
        kind, size, whole = labels[-1][0], int(labels[-1][1]), int(labels[-1][2])
        visited = {"whole": positions - positions % whole, "rest": positions % whole, "kept": whole}[kind]
        return -(-visited // size)

    return rounds


def _positions_per_sweep(config: RunConfig, step: CompiledStep) -> int:
    rows = config.data.batch_size // config.training.micro_batches
    return rows * config.data.max_length // (step.mesh["data"] * step.mesh["fsdp"])
