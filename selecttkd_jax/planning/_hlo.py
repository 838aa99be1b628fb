"""What a compiled program executes: its HLO text as instructions, each with how often it runs.

The compiler's own cost analysis counts the body of a loop once, so a scan over 28 layers looks like one layer. Here a
loop's body counts as often as the loop goes round.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\](?:\{[^{}]*?(?:S\((?P<space>\d+)\))?\})?")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Shape:
    """Dtype and sizes of an array, and in which memory it is: 0 is the device's own."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0


@dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
        name: Unique in its computation.
        opcode: Such as `dot`.
        shapes: Of the result; of its members if it is a tuple.
        operands: Their names; of a constant or parameter, what stands in the parentheses.
        attributes: All that follows the operands.
        root: Whether it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool


Rounds = Callable[[Instruction], int]


def once(loop: Instruction) -> int:
    """One round for every loop of an unknown number of rounds."""
    del loop
    return 1


@dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(instruction for instruction in self.instructions if instruction.root)

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Shapes of an instruction's operands, of those that are single arrays."""
        return [self.by_name[name].shapes[0] for name in instruction.operands if name in self.by_name]


@dataclass(frozen=True)
class Program:
    """A module: its computations, and which of them is run."""

    computations: dict[str, Computation]
    entry: str

    def executed(self, rounds: Rounds = once) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that runs, with its computation and how often it runs in all.

        Args:
            rounds: How often a loop goes round whose number of rounds is only known when it runs.
        """
        yield from self._walk(self.computations[self.entry], 1, rounds)

    def _walk(self, computation: Computation, times: int, rounds: Rounds):
        for instruction in computation.instructions:
            yield computation, instruction, times
            for called, often in self.called(instruction, rounds):
                yield from self._walk(called, times * often, rounds)

    def called(self, instruction: Instruction, rounds: Rounds = once) -> list[tuple[Computation, int]]:
        """The computations that an instruction calls, each with how often; a loop's condition is left out."""
        often = 1
        if instruction.opcode == "while":
            trips = self.trips(instruction)
            often = rounds(instruction) if trips is None else trips
        return [
            (self.computations[name], often)
            for names in _CALLED.findall(instruction.attributes)
            for name in re.findall(r"[\w.\-]+", names)
        ]

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` goes round; None where that is only known when it runs."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        # Not every compiler writes the number down. A counted loop runs while its counter is less than a constant.
        condition = self._called(loop, "condition")
        for counter, limit in _operand_pairs(condition, condition.root):
            index = re.search(r"index=(\d+)", counter.attributes)
            if limit.opcode == "constant" and index and "direction=LT" in condition.root.attributes:
                return -(-int(limit.operands[0]) // self._step(loop, int(index[1])))
        return None

    def _step(self, loop: Instruction, index: int) -> int:
        """By how much the counter grows in a round: more than 1 where the compiler took several rounds together."""
        body = self._called(loop, "body")
        grown = body.by_name.get(body.root.operands[index])
        for _, step in _operand_pairs(body, grown) if grown is not None and grown.opcode == "add" else ():
            if step.opcode == "constant":
                return int(step.operands[0])
        return 1

    def _called(self, loop: Instruction, role: str) -> Computation:
        name = re.search(rf"{role}=%?([\w.\-]+)", loop.attributes)
        assert name is not None
        return self.computations[name[1]]


def _operand_pairs(computation: Computation, instruction: Instruction) -> list[tuple[Instruction, Instruction]]:
    """The operands of an instruction of two, as (one, other) and the other way round."""
    found = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    return [(found[0], found[1]), (found[1], found[0])] if len(found) == 2 else []


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text()` gives."""
    computations: dict[str, Computation] = {}
    entry = ""
    name, instructions = "", []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            instructions.append(_instruction(match, line[match.end() :]))
        elif match := _COMPUTATION.match(line):
            name, instructions = match["name"], []
            entry = name if match["entry"] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, tuple(instructions))
    return Program(computations, entry)


def _instruction(match: re.Match[str], rest: str) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(shape["dtype"], tuple(int(size) for size in shape["sizes"].split(",") if size), int(shape["space"] or 0))
        for shape in _SHAPE.finditer(rest[:end])
    )
    opcode, _, rest = rest[end:].strip().partition("(")
    end = _closing("(" + rest) - 1
    inside = rest[: end - 1]
    operands = tuple(_NAME.findall(inside)) or (inside,)
    return Instruction(match["name"], opcode, shapes, operands, rest[end:], bool(match["root"]))


def _closing(text: str) -> int:
    """The index behind the parenthesis that closes the one `text` begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
