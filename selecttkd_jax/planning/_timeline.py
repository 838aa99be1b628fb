"""How long a compiled step takes at least: its kernels one after the other, and its collectives beside them.

A kernel takes as long as its bytes at the memory's peak rate, or as its matrix products at the peak rate of the units
that run them, whichever is longer; nothing is added for launching it. A collective that was started runs on the links,
one after the other, while kernels run; where the program has to wait for it, the wait is exposed.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from selecttkd_jax.planning._collectives import collective_kind, find_chain, instruction_traffic
from selecttkd_jax.planning._flops import SPLASH
from selecttkd_jax.planning._hlo import Computation, Instruction, Program, Rounds, once
from selecttkd_jax.planning._kernels import Work, is_kernel, kernel_work
from selecttkd_jax.planning._targets import Device

# What a kernel belongs to, by the scopes in which it was written (`jax.named_scope`), in this order of precedence:
# attention within the student is attention.
PARTS = ("attention", "head", "optimizer", "teacher", "student")
_NAME = re.compile(r'op_name="([^"]*)"')
_SCOPE = re.compile(rf"(?:^|[/(])({'|'.join(PARTS)})(?=[/)]|$)")


@dataclass
class Busy:
    """What the kernels of a part do.

    Attributes:
        seconds: How long they take, one after the other.
        kernels: How many run.
        moved: Bytes to and from memory.
        flops: Operations of matrix products, by dtype.
    """

    seconds: float = 0.0
    kernels: int = 0
    moved: int = 0
    flops: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Busy", times: int) -> None:
        """Adds `other`, so many times."""
        self.seconds += times * other.seconds
        self.kernels += times * other.kernels
        self.moved += times * other.moved
        self.flops.update({dtype: times * count for dtype, count in other.flops.items()})


@dataclass
class Timeline:
    """A device's step, or a part of its program.

    Attributes:
        parts: By `PARTS`, and `other`.
        links: Seconds for which its links are busy.
        exposed: Seconds for which nothing runs but a collective.
    """

    parts: dict[str, Busy] = field(default_factory=dict)
    links: float = 0.0
    exposed: float = 0.0

    @property
    def flops(self) -> Counter[str]:
        """Operations of matrix products, by dtype of their operands."""
        return reduce(add, (part.flops for part in self.parts.values()), Counter())

    @property
    def busy(self) -> float:
        """Seconds for which kernels run."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.busy + self.exposed

    def add(self, other: "Timeline", times: int = 1) -> None:
        """Adds `other`, so many times one after the other."""
        self.links += times * other.links
        self.exposed += times * other.exposed
        for name, part in other.parts.items():
            self.parts.setdefault(name, Busy()).add(part, times)


def lay_out_timeline(program: Program, device: Device, devices: int, rounds: Rounds = once) -> Timeline:
    """The timeline of a compiled program.

    Args:
        program: One device's.
        device: Its rates; those that are not stated take no time.
        devices: Of the whole mesh.
        rounds: See `Program.executed`.
    """
    return _Run(program, device, devices, rounds).computation(program.computations[program.entry], "other")


@dataclass(frozen=True)
class _Run:
    """A program on a device."""

    program: Program
    device: Device
    devices: int
    rounds: Rounds

    def computation(self, computation: Computation, caller: str) -> Timeline:
        """The timeline of a computation's instructions, in the order in which they were scheduled.

        Args:
            computation: Which one.
            caller: The part to which kernels belong that say nothing of themselves.
        """
        timeline = Timeline()
        free = 0.0  # when the links are free again
        ends: dict[str, float] = {}  # by the name of what started a collective: when it is through
        for instruction in computation.instructions:
            if instruction.opcode == "conditional":
                branches = [self.computation(called, caller) for called, _ in self.program.called(instruction)]
                timeline.add(max(branches, key=lambda branch: branch.seconds))
            elif instruction.opcode in ("while", "call"):
                part = part_of(instruction) or caller
                for called, times in self.program.called(instruction, self.rounds):
                    timeline.add(self.computation(called, part), times)
            elif instruction.opcode.endswith(("-done", "-update")):
                end = ends.pop(instruction.operands[0], None)
                if end is not None and instruction.opcode.endswith("-update"):
                    ends[instruction.name] = end
                elif end is not None:
                    timeline.exposed += max(0.0, end - timeline.seconds)
            elif chain := self._chain(instruction):
                step, channel = chain
                if step == "start":
                    sent = self._seconds_on_links(computation, instruction)
                    timeline.links += sent
                    free = ends[channel] = max(free, timeline.seconds) + sent
                elif step == "end":
                    timeline.exposed += max(0.0, ends.pop(channel, 0.0) - timeline.seconds)
                else:
                    timeline.add(self._kernel(computation, instruction, caller))
            elif sent := self._seconds_on_links(computation, instruction):
                timeline.links += sent
                free = max(free, timeline.seconds) + sent
                if instruction.opcode.endswith("-start"):
                    ends[instruction.name] = free
                else:
                    timeline.exposed += free - timeline.seconds
            elif is_kernel(instruction):
                timeline.add(self._kernel(computation, instruction, caller))
        # What is waited for in another round or elsewhere is through by the end of this one.
        timeline.exposed += max(0.0, max(ends.values(), default=0.0) - timeline.seconds)
        return timeline

    def _kernel(self, computation: Computation, instruction: Instruction, caller: str) -> Timeline:
        work = kernel_work(self.program, computation, instruction)
        busy = Busy(kernel_seconds(work, self.device), 1, work.moved, work.flops)
        return Timeline({part_of(instruction) or caller: busy})

    def _chain(self, instruction: Instruction) -> tuple[str, str] | None:
        if instruction.opcode != "fusion":
            return None
        ((body, _),) = self.program.called(instruction)
        return find_chain(body)

    def _seconds_on_links(self, computation: Computation, instruction: Instruction) -> float:
        """What an instruction sends, itself or in what it wraps; 0 where it sends nothing."""
        device, total = self.device, 0.0
        if kind := collective_kind(computation, instruction):
            _, traffic = instruction_traffic(computation, instruction, kind, self.devices, device.per_host)
            total += traffic.seconds(device.link_rate or float("inf"), device.hosts_rate or float("inf"))
        if instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
            for called, _ in self.program.called(instruction):
                total += sum(self._seconds_on_links(called, inner) for inner in called.instructions)
        return total


def kernel_seconds(work: Work, device: Device) -> float:
    """The least time of a kernel on a device; what has no stated rate takes none."""
    wide = sum(count for dtype, count in work.flops.items() if dtype in ("f32", "f64"))
    narrow = work.flops.total() - wide
    products = wide / (device.flops_float32 or float("inf")) + narrow / (device.flops or float("inf"))
    return max(work.moved / (device.memory_rate or float("inf")), products)


def part_of(instruction: Instruction) -> str | None:
    """The part to which an instruction says that it belongs, if it does."""
    if SPLASH.match(instruction.name):
        return "attention"
    name = _NAME.search(instruction.attributes)
    scopes = set(_SCOPE.findall(name[1])) if name else ()
    return next((part for part in PARTS if part in scopes), None)
