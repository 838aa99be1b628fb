"""Where a sweep runs: its chunk size from a memory budget, and its sharding over a mesh.

Each device sweeps its own rows, for as many chunks as it has valid positions: nothing is exchanged inside the loop over
chunks but what a vocabulary sharded over devices needs. The head's gradient is summed over devices once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from selecttkd_jax._array_types import Array
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._mesh_axes import BATCH_AXES, VOCABULARY_AXIS, automatic_axes, vary_alike
from selecttkd_jax.distill._chunks import CACHED_POSITIONS, on_cpu
from selecttkd_jax.distill._head_products import HeadInputs
from selecttkd_jax.distill._sweep import Evaluate, StudentGradient, SweepOptions, sweep

SCATTERED = "fsdp"
"""The mesh axis over which weights are sharded by width, and so is the sum of the head's gradient."""
MEMORY_BUDGET = 2**30
CPU_MEMORY_BUDGET = 5 * 2**26  # 320 MiB: the largest chunk still fits a vocabulary of 152k
# Beyond these the products run no faster.
LARGEST_CHUNK = 1024
LARGEST_CPU_CHUNK = 256
TAIL_PARTS = 2
# Positions that matrix units of GPUs and TPUs work on at once: in a chunk of another size a tile is partly empty.
TILE = 128


@dataclass(frozen=True)
class Placement:
    """How a sweep is sharded; hashable.

    Attributes:
        options: Of each device's sweep.
        batch_axes: Mesh axes over which the rows are sharded; empty off a mesh.
    """

    options: SweepOptions
    batch_axes: tuple[str, ...]


def choose_placement(
    student: HeadInputs,
    teacher: HeadInputs | None,
    chunk_size: int | str,
    memory_budget: int | None,
    *,
    skip_weightless: bool = False,
) -> Placement:
    """The sharding over the current mesh (`jax.set_mesh`), and the chunk size.

    Args:
        student: Hidden states [B, T, D].
        teacher: The same of the teacher, or None.
        chunk_size: Positions whose logits exist at once on a device, or "auto".
        memory_budget: Bytes of a device for logits and their gradient under "auto", or None.
        skip_weightless: See `SweepOptions`.

    Raises:
        InputError: The batch cannot be sharded over the mesh, or an option is out of range.
    """
    automatic = automatic_axes()
    batch_axes = tuple(name for name in BATCH_AXES if name in automatic)
    devices = prod(automatic[name] for name in batch_axes)
    rows, length = student.hidden.shape[:2]
    if rows % devices:
        raise InputError(f"a batch of {rows} rows does not divide over the {devices} devices of axes {batch_axes}")

    widths = [model.vocab_size for model in (student, teacher) if model is not None]
    shards = automatic.get(VOCABULARY_AXIS, 1)
    sharded = shards > 1 and all(width % shards == 0 for width in widths)
    cpu = on_cpu()
    if chunk_size == "auto":
        budget = memory_budget if memory_budget is not None else CPU_MEMORY_BUDGET if cpu else MEMORY_BUDGET
        check_at_least("memory_budget", budget, 1)
        # Logits of both models, the student's replaced by their gradient, which low precision takes once more.
        itemsize = student.hidden.dtype.itemsize
        row_bytes = max(widths) // (shards if sharded else 1) * (8 if itemsize == 4 else 8 + itemsize)
        chunk_size = min(max(CACHED_POSITIONS, budget // row_bytes), LARGEST_CPU_CHUNK if cpu else LARGEST_CHUNK)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise InputError(f"chunk_size must be a whole number or 'auto', got {chunk_size!r}")
    check_at_least("chunk_size", chunk_size, 1)
    chunk_size = min(chunk_size, max(1, rows * length // devices))
    # Whole pieces, in a chunk as in what is left for the end, where they are large enough for that. A chunk is a whole
    # number of tails: the last one would else begin before its place, in an array that ends with a chunk.
    piece = CACHED_POSITIONS if cpu else TILE if chunk_size >= TILE else 1
    tail_parts = TAIL_PARTS if chunk_size >= TAIL_PARTS * piece else 1
    if cpu or piece == 1:
        if chunk_size >= piece:
            chunk_size -= chunk_size % (tail_parts * piece)
        tail_size = chunk_size // tail_parts
    else:
        chunk_size -= chunk_size % piece
        tail_size = next(
            size for size in range(chunk_size // tail_parts, 0, -1) if chunk_size % size == size % piece == 0
        )
    assert chunk_size % tail_size == 0
    options = SweepOptions(
        chunk_size=chunk_size,
        tail_size=tail_size,
        cached_rows=min(piece, chunk_size) if cpu else chunk_size,
        tiled=cpu and not sharded,
        skip_weightless=skip_weightless,
        logits_sharding=PartitionSpec(None, VOCABULARY_AXIS) if sharded else None,
    )
    return Placement(options, batch_axes)


def cut_to_equal_widths(student: HeadInputs, teacher: HeadInputs | None) -> tuple[HeadInputs, HeadInputs | None]:
    """Where a mesh shards the vocabulary, both heads at the narrower width; as they are elsewhere.

    Two widths are cut into shards at different columns. Cut here, columns move between devices once a step; left to the
    loop, logits would move in every chunk.
    """
    if teacher is None:
        return student, None
    shards = automatic_axes().get(VOCABULARY_AXIS, 1)
    width = min(student.vocab_size, teacher.vocab_size)
    if shards == 1 or width % shards or student.vocab_size == teacher.vocab_size:
        return student, teacher
    return _cut(student, width), _cut(teacher, width)


def _cut(model: HeadInputs, width: int) -> HeadInputs:
    axis = 0 if model.vocab_first else 1
    matrix = jax.lax.slice_in_dim(model.matrix, 0, width, axis=axis)
    spec = PartitionSpec(*(VOCABULARY_AXIS if place == axis else PartitionSpec.UNCONSTRAINED for place in (0, 1)))
    matrix = jax.lax.with_sharding_constraint(matrix, spec)
    return replace(model, matrix=matrix, bias=None if model.bias is None else model.bias[:width])


def placed_sweep(
    evaluate: Evaluate,
    student: HeadInputs,
    teacher: HeadInputs | None,
    per_token: Any,
    mask: Array,
    placement: Placement,
    *,
    with_gradient: bool,
) -> tuple[Array, Any, HeadInputs | None]:
    """`sweep` over [B, T] positions, sharded over the mesh as `placement` says.

    `fused_head` and `map_logits` call this. `local` is what one device does: flatten its rows, `sweep` them, sum what
    all devices have a part of. Off a mesh it is called as it is; on one, through `shard_map` over the batch axes, while
    `tensor` is left to the compiler.

    Returns:
        The sum of the scalars, the pytree of [B, T] results, and the gradient to everything of the student's, or None.
    """
    axes = placement.batch_axes

    # What one device does.
    def local(student: HeadInputs, teacher: HeadInputs | None, per_token: Any, mask: Array) -> Any:
        def flat(leaf: Array) -> Array:
            return leaf.reshape(-1, *leaf.shape[2:])

        total, results, gradient = sweep(
            evaluate,
            replace(student, hidden=flat(student.hidden)),
            teacher and replace(teacher, hidden=flat(teacher.hidden)),
            jax.tree.map(flat, per_token),
            flat(mask),
            placement.options,
            with_gradient=with_gradient,
        )
        results = jax.tree.map(lambda leaf: leaf.reshape(*mask.shape, *leaf.shape[1:]), results)
        if axes:
            total = jax.lax.psum(total, axes)
        return total, results, gradient and _collected(gradient, student, axes)

    if not axes:
        return local(student, teacher, per_token, mask)

    # Rows are sharded, heads whole on every device; the head's gradient leaves sharded by width where it can.
    by_rows, whole = PartitionSpec(axes), PartitionSpec()

    def spec(model: HeadInputs, matrix: PartitionSpec = whole) -> HeadInputs:
        return replace(model, hidden=by_rows, matrix=matrix, bias=None if model.bias is None else whole)

    width = PartitionSpec(*(SCATTERED if _scatters(student, axes) == axis else None for axis in (0, 1)))
    run = jax.shard_map(
        local,
        in_specs=(spec(student), teacher and spec(teacher), by_rows, by_rows),
        out_specs=(whole, by_rows, spec(student, width) if with_gradient else None),
        axis_names=set(axes),
        check_vma=False,
    )
    # Where only some axes are its own, `shard_map` has to be compiled.
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((student, teacher, per_token, mask)))
    found = (run if traced else jax.jit(run))(student, teacher, per_token, mask)
    # Within a `shard_map` of the caller over other axes, whose types the one above does not follow.
    return vary_alike(found, like=(student, teacher, per_token, mask))


def _scatters(student: HeadInputs, axes: tuple[str, ...]) -> int | None:
    """The axis of the head, its width, over which the sum of its gradient is left scattered; None if it is not."""
    axis = 1 if student.vocab_first else 0
    devices = jax.sharding.get_abstract_mesh().shape[SCATTERED] if SCATTERED in axes else 1
    return axis if devices > 1 and student.matrix.shape[axis] % devices == 0 else None


def _collected(gradient: StudentGradient, student: HeadInputs, axes: tuple[str, ...]) -> HeadInputs:
    """The gradient in the form of what it belongs to, the head's summed over devices."""
    matrix, bias = gradient.matrix, gradient.bias
    scattered = _scatters(student, axes)
    if scattered is not None:
        # Half of what a sum costs that every device gets whole.
        matrix = jax.lax.psum_scatter(matrix, SCATTERED, scatter_dimension=scattered, tiled=True)
        axes_left = tuple(axis for axis in axes if axis != SCATTERED)
        matrix = jax.lax.psum(matrix, axes_left) if axes_left else matrix
    elif axes:
        matrix = jax.lax.psum(matrix, axes)
    if axes:
        bias = jax.lax.psum(bias, axes)
    return replace(student, hidden=gradient.hidden.reshape(student.hidden.shape), matrix=matrix, bias=bias)
