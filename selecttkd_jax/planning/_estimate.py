"""What a compiled step costs on a target: operations, traffic, and the least time they can take."""

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from selecttkd_jax.planning._collectives import Traffic, collective_traffic
from selecttkd_jax.planning._flops import matmul_flops
from selecttkd_jax.planning._hlo import Instruction, Rounds
from selecttkd_jax.planning._program import CompiledStep
from selecttkd_jax.planning._targets import Target
from selecttkd_jax.runs import RunConfig

_SWEEP = re.compile(r"(whole|rest|kept)_(\d+)_of_(\d+)")


@dataclass(frozen=True)
class Estimate:
    """Of one device and one step.

    Attributes:
        flops: Operations of matrix products, by dtype of their operands.
        memory_bytes: Bytes to and from memory, at least: arguments once in, results once out, all else out and in.
        traffic: By kind of collective and size of its groups.
        seconds: Least time by what it goes into: `matrix products`, `memory`, `links`; empty where the target states
            no rates.
        tokens: Tokens of a whole batch, padding among them.
    """

    flops: Counter[str]
    memory_bytes: int
    traffic: dict[tuple[str, int], Traffic]
    seconds: dict[str, float]
    tokens: int

    @property
    def step_seconds(self) -> float | None:
        """The least time of a step, all three overlapping perfectly."""
        return max(self.seconds.values(), default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens a second, over all devices."""
        return None if self.step_seconds is None else self.tokens / self.step_seconds


def estimate(config: RunConfig, target: Target, step: CompiledStep) -> Estimate:
    """Counts what `step` does and divides by the target's peak rates."""
    rounds = sweep_rounds(_positions_per_sweep(config, step))
    flops = matmul_flops(step.program, rounds)
    traffic = collective_traffic(step.program, prod(step.mesh.values()), rounds, per_host=target.device.per_host)
    memory = step.memory
    # The teacher is read, the student's state read and written, and what is made on the way written and read.
    state = memory.student + memory.optimizer
    memory_bytes = memory.teacher + memory.batch + 2 * state + 2 * memory.working
    device = target.device
    seconds = {}
    if device.flops and device.flops_float32 and device.memory_rate and device.link_rate and device.hosts_rate:
        wide = sum(count for dtype, count in flops.items() if dtype in ("f32", "f64"))
        seconds["matrix products"] = (flops.total() - wide) / device.flops + wide / device.flops_float32
        seconds["memory"] = memory_bytes / device.memory_rate
        seconds["links"] = sum(
            moved.host_load / device.hosts_rate + (moved.sent - moved.sent_between_hosts) / device.link_rate
            for moved in traffic.values()
        )
    return Estimate(flops, memory_bytes, traffic, seconds, config.data.batch_size * config.data.max_length)


def sweep_rounds(positions: int) -> Rounds:
    """How often the fused head's loops go round when every one of `positions` carries loss.

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
