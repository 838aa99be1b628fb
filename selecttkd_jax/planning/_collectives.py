"""What devices say to each other in a compiled step: how often, and how many bytes, by kind."""

import re
from collections import defaultdict
from dataclasses import dataclass, fields
from math import prod

import numpy as np

from selecttkd_jax.planning._hlo import Computation, Instruction, Program, Rounds, Shape, once

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_STARTS, _ENDS = (f'custom_call_target="AsyncCollective{what}"' for what in ("Start", "Done"))
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

    def add(self, other: "Traffic", times: int) -> None:
        """Adds `other`, so many times."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + times * getattr(other, field.name))

    def seconds(self, link_rate: float, hosts_rate: float) -> float:
        """How long the links take, within a host and between hosts."""
        return self.host_load / hosts_rate + (self.sent - self.sent_between_hosts) / link_rate


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
    for computation, instruction, times in program.executed(rounds):
        if (kind := collective_kind(computation, instruction)) is None:
            continue
        group, once_sent = instruction_traffic(computation, instruction, kind, devices, per_host)
        found[kind, group].add(once_sent, times)
    return dict(found)


def collective_kind(computation: Computation, instruction: Instruction) -> str | None:
    """Which of KINDS an instruction of a computation is or starts; None: it is no collective."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # A TPU's compiler writes one that runs beside kernels into each of them, and into its start and its end.
    if "chain_id=" in instruction.attributes and _STARTS not in computation.root.attributes:
        return None
    # A TPU's compiler writes a reduce-scatter as a fusion of this name: a sum, of which a part is taken.
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind


def find_chain(computation: Computation) -> tuple[str, str] | None:
    """The step of a TPU's fused asynchronous collective that a fused computation is, and the collective's channel.

    Returns:
        `start`, `go on` or `end`, and the channel; None where it is no part of one.
    """
    for instruction in computation.instructions:
        if "chain_id=" in instruction.attributes and instruction.opcode in KINDS:
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            attributes = computation.root.attributes
            step = "start" if _STARTS in attributes else "end" if _ENDS in attributes else "go on"
            return step, channel[1] if channel else ""
    return None


def instruction_traffic(
    computation: Computation, instruction: Instruction, kind: str, devices: int, per_host: int | None = None
) -> tuple[int, Traffic]:
    """The size of a collective's groups, and what a device sends when it runs once."""
    per_host = per_host or devices
    members = first_group(instruction, devices)
    payload = _payload(computation, instruction, kind)
    traffic = Traffic(1, payload, payload * _share_sent(kind, len(members)))
    hosts = {device // per_host for device in members}
    if len(hosts) > 1:
        traffic.sent_between_hosts = traffic.sent
        traffic.host_load = traffic.sent * per_host * len(hosts) / len(members)
    return len(members), traffic


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
