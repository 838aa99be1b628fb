"""What devices say to each other in a compiled step: how often, and how many bytes, by kind."""

import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod

import numpy as np

from selecttkd_jax.planning._hlo import Computation, Instruction, Program, Rounds, Shape, once

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
        sent_between_hosts: Those of `sent` whose groups span several hosts.
        host_load: Those, times a host's devices by a group's members there: a group with one member on each host sends
            through one adapter of each, not through all.
    """

    count: int = 0
    payload: int = 0
    sent: float = 0.0
    sent_between_hosts: float = 0.0
    host_load: float = 0.0


def collective_traffic(
    program: Program, devices: int, rounds: Rounds = once, *, per_host: int | None = None
) -> dict[tuple[str, int], Traffic]:
    """Traffic by (kind, devices that talk to each other).

    Args:
        program: One device's.
        devices: Of the whole mesh.
        per_host: How many of them, which follow on each other, share a host; None: all.
        rounds: See `Program.executed`.
    """
    found: dict[tuple[str, int], Traffic] = defaultdict(Traffic)
    per_host = per_host or devices
    for computation, instruction, times in program.executed(rounds):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        # A TPU's compiler writes a reduce-scatter as a fusion of this name: a sum, of which a part is taken.
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        members = first_group(instruction, devices)
        payload = _payload(computation, instruction, kind)
        traffic = found[kind, len(members)]
        sent = times * payload * _share_sent(kind, len(members))
        traffic.count += times
        traffic.payload += times * payload
        traffic.sent += sent
        hosts = {device // per_host for device in members}
        if len(hosts) > 1:
            traffic.sent_between_hosts += sent
            traffic.host_load += sent * per_host * len(hosts) / len(members)
    return dict(found)


def first_group(instruction: Instruction, devices: int) -> list[int]:
    """Which devices take part in the first group of a collective; its other groups are arranged alike."""
    text = instruction.attributes
    if listed := re.search(r"replica_groups={{([\d,]+)}", text):
        return [int(device) for device in listed[1].split(",")]
    if strided := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = np.arange(int(strided[1]) * int(strided[2])).reshape(_numbers(strided[3]))
        ids = ids if strided[4] is None else ids.transpose(_numbers(strided[4]))
        return ids.reshape(-1, int(strided[2]))[0].tolist()
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] *{([^}]*)}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        taken = re.findall(r"'([^']+)'", meshed[2])
        ids = np.arange(prod(sizes.values())).reshape(list(sizes.values()))
        return ids[tuple(slice(None) if axis in taken else 0 for axis in sizes)].reshape(-1).tolist()
    return list(range(devices))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


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
