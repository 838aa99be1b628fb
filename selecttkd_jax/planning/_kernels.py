"""Kernels of a compiled program: what each of them reads, writes and computes.

A kernel is an instruction that is launched by itself: a fusion, a product, a copy. What a fusion makes on its way stays
in registers, and of an operand that it takes a slice or a row of it reads no more.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from selecttkd_jax.planning._collectives import KINDS, array_bytes, find_chain
from selecttkd_jax.planning._flops import instruction_flops
from selecttkd_jax.planning._hlo import Computation, Instruction, Program, Shape

# Nothing runs for these: names for what is there already, and what runs other computations.
_NOT_LAUNCHED = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_RENAMED = ("bitcast", "reshape")
# What changes a part of its first operand where it is, and which operand holds the new part.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}


@dataclass(frozen=True)
class Work:
    """What a kernel does when it runs once.

    Attributes:
        moved: Bytes to and from the device's memory.
        flops: Operations of matrix products, by dtype of their operands.
    """

    moved: int
    flops: Counter[str]


def is_kernel(instruction: Instruction) -> bool:
    """Whether something is launched for it; collectives and what waits for something are not asked about."""
    return instruction.opcode not in _NOT_LAUNCHED and not instruction.opcode.endswith(("-done", "-update"))


def kernel_work(program: Program, computation: Computation, kernel: Instruction) -> Work:
    """What a kernel of a computation moves and computes."""
    flops: Counter[str] = Counter()
    for place, instruction in _inside(program, computation, kernel):
        if count := instruction_flops(place, instruction):
            flops[place.operand_shapes(instruction)[0].dtype] += count
    return Work(_bytes_read(program, computation, kernel) + _bytes_written(program, kernel), flops)


def _inside(
    program: Program, computation: Computation, kernel: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    yield computation, kernel
    if kernel.opcode == "fusion":
        for body, _ in program.called(kernel):
            for instruction in body.instructions:
                yield from _inside(program, body, instruction)


def _bytes_read(program: Program, computation: Computation, kernel: Instruction) -> int:
    shapes = [computation.by_name[name].shapes for name in kernel.operands if name in computation.by_name]
    whole = [sum(_memory_bytes(shape) for shape in parts) for parts in shapes]
    if kernel.opcode == "fusion":
        ((body, _),) = program.called(kernel)
        return sum(min(size, _bytes_used(program, body, number)) for number, size in enumerate(whole) if size)
    if kernel.opcode in ("dynamic-slice", "slice", "gather"):
        return min(whole[0], _written(kernel.shapes))
    if kernel.opcode in _IN_PLACE:
        return 2 * whole[_IN_PLACE[kernel.opcode]]  # and it is written
    return sum(whole)


def _bytes_used(program: Program, body: Computation, number: int) -> int:
    """Bytes that a fusion reads of an operand: all, or the sum of the parts that it takes."""
    (parameter,) = (i for i in body.instructions if i.opcode == "parameter" and i.operands == (str(number),))
    return _bytes_used_of(program, body, parameter)


def _bytes_used_of(program: Program, body: Computation, taken: Instruction) -> int:
    whole, used = _written(taken.shapes), 0
    # What a collective that goes on beside a kernel works on is handed through the kernel's fusion.
    passed = () if find_chain(body) is None else (body.root, *(i for i in body.instructions if i.opcode in KINDS))
    for user in body.instructions:
        if taken.name not in user.operands:
            continue
        first = user.operands[0] == taken.name
        if user.opcode in _RENAMED:
            used += _bytes_used_of(program, body, user)
        elif user.opcode == "fusion":
            ((inner, _),) = program.called(user)
            used += sum(
                _bytes_used(program, inner, place) for place, name in enumerate(user.operands) if name == taken.name
            )
        elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
            used += _written(user.shapes)
        elif (user.opcode in _IN_PLACE and first) or (user in passed):
            used += 0
        else:
            return whole
    return min(whole, used)


def _bytes_written(program: Program, kernel: Instruction) -> int:
    if kernel.opcode == "fusion":
        ((body, _),) = program.called(kernel)
        members = body.root.operands if body.root.opcode == "tuple" else (body.root.name,)
        return sum(
            _bytes_updated(body, body.by_name[name]) if _memory_bytes(shape) else 0
            for name, shape in zip(members, kernel.shapes, strict=False)
        )
    if kernel.opcode in _IN_PLACE:
        return 0  # see what it reads
    shapes = kernel.shapes
    if kernel.opcode == "custom-call":
        # The last of several results is a library's scratch space.
        shapes = [shape for shape in shapes if len(shapes) == 1 or shape.dtype not in ("s8", "u8")]
    if kernel.opcode.endswith("-start"):
        # Of a copy: what is made, not what goes in again.
        shapes = shapes[:1]
    return sum(_memory_bytes(shape) for shape in shapes)


def _bytes_updated(body: Computation, result: Instruction) -> int:
    """Bytes that a fusion writes of one of its results: the updated slice, where it is updated in place."""
    made = result
    while made.opcode in _RENAMED and made.operands[0] in body.by_name:
        made = body.by_name[made.operands[0]]
    if (made.opcode == "parameter" or made.opcode in KINDS) and find_chain(body) is not None:
        return 0
    if made.opcode in _IN_PLACE:
        return _written(body.by_name[made.operands[_IN_PLACE[made.opcode]]].shapes)
    return _written(result.shapes)


def _written(shapes: tuple[Shape, ...] | list[Shape]) -> int:
    return sum(array_bytes(shape) for shape in shapes)


def _memory_bytes(shape: Shape) -> int:
    return array_bytes(shape) if shape.space == 0 else 0
