"""What devices say to each other in a compiled step: how often, and how many bytes, by kind."""

import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod

from selecttkd_jax.planning.hlo import Computation, Instruction, Program, Rounds, Shape, once

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "fsu" for bits in (2, 4, 8, 16, 32, 64) if not (kind == "f" and bits < 16)
}


@dataclass
class Traffic:
    """Of one kind and group size, of one device in one step.

    Attributes:
        count: Operations.
        payload: Bytes of whole arrays: what a gather makes, or what a reduction starts from.
        sent: Bytes that leave the device, with the best algorithm for a ring.
    """

    count: int = 0
    payload: int = 0
    sent: float = 0.0


def collective_traffic(program: Program, devices: int, rounds: Rounds = once) -> dict[tuple[str, int], Traffic]:
    """Traffic by (kind, devices that talk to each other).

    Args:
        program: One device's.
        devices: Of the whole mesh.
        rounds: See `Program.executed`.
    """
    found: dict[tuple[str, int], Traffic] = defaultdict(Traffic)
    for computation, instruction, times in program.executed(rounds):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        group = group_size(instruction, devices)
        payload = _payload(computation, instruction, kind)
        traffic = found[kind, group]
        traffic.count += times
        traffic.payload += times * payload
        traffic.sent += times * payload * _share_sent(kind, group)
    return dict(found)


def group_size(instruction: Instruction, devices: int) -> int:
    """How many devices take part in one group of a collective."""
    text = instruction.attributes
    if listed := re.search(r"replica_groups={{([\d,]+)}", text):
        return len(listed[1].split(","))
    if strided := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(strided[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] *{([^}]*)}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", meshed[2]))
    return devices


def array_bytes(shape: Shape) -> int:
    """Bytes of an array, without padding."""
    return prod(shape.sizes) * _BITS.get(shape.dtype, 8) // 8


def _payload(computation: Computation, instruction: Instruction, kind: str) -> int:
    operands = sum(array_bytes(shape) for shape in computation.operand_shapes(instruction))
    if kind != "all-gather":
        return operands
    results = sum(array_bytes(shape) for shape in instruction.shapes)
    # The result of a start is a tuple of what goes in and what comes out.
    return results - operands if instruction.opcode.endswith("-start") else results


def _share_sent(kind: str, group: int) -> float:
    if kind == "collective-permute":
        return 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (group - 1) / group
