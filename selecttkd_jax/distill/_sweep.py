"""One sweep over the positions that count, a chunk at a time: logits of both models, what is asked of them, gradients.

No array of positions times vocabulary outlives its chunk. Positions outside the mask are never visited: the valid ones
are listed first, and the loop ends after the last of them, however many a batch has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array
from selecttkd_jax._mesh_axes import vary_alike
from selecttkd_jax.distill._head_products import HeadInputs, add_head_gradient, hidden_gradient, logits

# evaluate(student_logits [R, V], teacher_logits [R, V] or None, per_token, live [R])
#   -> (scalar to differentiate, pytree [R])
# Rows that are not live fill up a chunk; they have to stay out of the scalar.
Evaluate = Callable[[Array, Array | None, Any, Array], tuple[Array, Any]]


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep proceeds; none of it changes a result beyond rounding.

    Attributes:
        chunk_size: Positions whose logits exist at once.
        tail_size: Size of the chunks that take what whole ones leave over; divides `chunk_size`.
        cached_rows: Positions evaluated at once within a chunk, so that intermediates stay in a CPU's cache; divides
            `tail_size`, or is `chunk_size` where there is no such cache.
        tiled: Whether the head's gradient is added up a tile at a time.
        skip_weightless: Whether positions whose `weight` (results are `TokenTerms` then) is 0 stay out of the
            gradient's products. Only right where the weight is all that multiplies their loss.
        logits_sharding: How a chunk's logits are sharded over the mesh, or None.
    """

    chunk_size: int
    tail_size: int
    cached_rows: int
    tiled: bool
    skip_weightless: bool = False
    logits_sharding: Any = None


class StudentGradient(NamedTuple):
    """Of the summed scalar, in float32: to the hidden states [N, D], the head and the bias, each of its layout."""

    hidden: Array
    matrix: Array
    bias: Array | None


def sweep(
    evaluate: Evaluate,
    student: HeadInputs,
    teacher: HeadInputs | None,
    per_token: Any,
    valid: Array,
    options: SweepOptions,
    *,
    with_gradient: bool,
) -> tuple[Array, Any, StudentGradient | None]:
    """Evaluates every valid position.

    Two loops call `chunk`, for whole chunks and for what they leave over. What they carry: the sum of the scalars, the
    results of each position in the order of visit, and the gradient so far. `unpacked` puts results in their places.

    Args:
        evaluate: On the logits of some positions.
        student: Hidden states [N, D] and head.
        teacher: Hidden states [N, D'] and head, or None.
        per_token: Pytree of [N, ...] arrays that `evaluate` needs.
        valid: [N] bool: which positions to visit.
        options: How.
        with_gradient: Whether to differentiate, too.

    Returns:
        The sum of the scalars; the pytree of [N] results, zeros where not valid; the gradient or None.
    """
    # The order of visit, and each valid position's place in it.
    slots = -(-valid.shape[0] // options.chunk_size) * options.chunk_size
    count = jnp.sum(valid.astype(jnp.int32))
    # The valid positions first. The first of them fills up the last chunk, where it is not live: a position that is not
    # valid may hold anything, and zero times NaN is NaN.
    order = jnp.nonzero(valid, size=slots, fill_value=0)[0]
    order = jnp.where(jnp.arange(slots) < count, order, order[0])
    place = jnp.cumsum(valid.astype(jnp.int32)) - 1

    # One chunk: its logits, what is asked of them, and their share of the gradient.
    def chunk(start: Array, size: int, carry: Any) -> Any:
        total, results, gradient = carry
        rows = jax.lax.dynamic_slice_in_dim(order, start, size)
        live = start + jnp.arange(size) < count
        hidden = jnp.take(student.hidden, rows, axis=0)
        z_student = _shard_logits(logits(student, hidden), options)
        z_teacher = teacher and _shard_logits(logits(teacher, jnp.take(teacher.hidden, rows, axis=0)), options)
        inputs = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), per_token)
        value, values, z_gradient = _evaluate(evaluate, z_student, z_teacher, (inputs, live), options, with_gradient)
        if with_gradient:
            keep = live & ~(values.weight <= 0) if options.skip_weightless else None
            gradient = _add_products(student, gradient, start, hidden, z_gradient.astype(hidden.dtype), keep, options)
        return total + value, jax.tree.map(_putter(start), results, values), gradient

    def chunks(part: str, first: Array | int, end: Array, size: int, carry: Any) -> Any:
        number = (end - first + size - 1) // size
        # The name tells profiles and planning how many positions a round takes.
        with jax.named_scope(f"{part}_{size}_of_{options.chunk_size}"):
            return jax.lax.fori_loop(0, number, lambda index, carry: chunk(first + index * size, size, carry), carry)

    # What is carried begins as zeros of the shapes that one position gives.
    scalar, shapes = jax.eval_shape(
        evaluate,
        jax.ShapeDtypeStruct((1, student.vocab_size), student.sum_dtype),
        teacher and jax.ShapeDtypeStruct((1, teacher.vocab_size), teacher.sum_dtype),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), per_token),
        jax.ShapeDtypeStruct((1,), jnp.bool_),
    )
    results = jax.tree.map(lambda s: jnp.zeros((slots, *s.shape[1:]), s.dtype), shapes)
    gradient = _no_gradient(student, slots) if with_gradient else None
    carry = vary_alike((jnp.zeros((), scalar.dtype), results, gradient), like=(student, teacher, per_token, valid))
    # Whole chunks, and the rest in smaller ones: half a chunk would be wasted in the mean.
    whole = count - count % options.chunk_size
    carry = chunks("whole", 0, whole, options.chunk_size, carry)
    total, results, gradient = chunks("rest", whole, count, options.tail_size, carry)

    def unpacked(packed: Array) -> Array:
        chosen = jnp.take(packed, jnp.maximum(place, 0), axis=0)
        return jnp.where(valid.reshape(-1, *(1,) * (chosen.ndim - 1)), chosen, jnp.zeros((), chosen.dtype))

    if gradient is not None:
        gradient = gradient._replace(hidden=unpacked(gradient.hidden))
    return total, jax.tree.map(unpacked, results), gradient


def _evaluate(
    evaluate: Evaluate,
    z_student: Array,
    z_teacher: Array | None,
    per_row: Any,
    options: SweepOptions,
    with_gradient: bool,
) -> tuple[Array, Any, Any]:
    """The chunk's scalar, its results [C], and the scalar's gradient to the student's logits [C, V] or None."""

    def on_rows(z_student: Array, z_teacher: Array | None, per_row: Any) -> tuple[Array, Any, Any]:
        if not with_gradient:
            return *evaluate(z_student, z_teacher, *per_row), None
        (value, results), gradient = jax.value_and_grad(evaluate, has_aux=True)(z_student, z_teacher, *per_row)
        return value, results, gradient

    size = z_student.shape[0]
    if options.cached_rows >= size:
        return on_rows(z_student, z_teacher, per_row)

    def rows(index: Array, carry: Any) -> Any:
        total, results, z_student = carry
        start = index * options.cached_rows

        def take(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, start, options.cached_rows)

        value, values, gradient = on_rows(*jax.tree.map(take, (z_student, z_teacher, per_row)))
        # A row's gradient takes the place of its logits, which nobody reads again: one large array less.
        z_student = _putter(start)(z_student, gradient) if with_gradient else z_student
        return total + value, jax.tree.map(_putter(start), results, values), z_student

    scalar, shapes, _ = jax.eval_shape(on_rows, z_student, z_teacher, per_row)
    results = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry = vary_alike((jnp.zeros((), scalar.dtype), results, z_student), like=(z_student, z_teacher, per_row))
    value, results, gradient = jax.lax.fori_loop(0, size // options.cached_rows, rows, carry)
    return value, results, gradient if with_gradient else None


def _no_gradient(student: HeadInputs, slots: int) -> StudentGradient:
    dtype = student.sum_dtype
    return StudentGradient(
        hidden=jnp.zeros((slots, student.hidden.shape[1]), dtype),
        matrix=jnp.zeros(student.matrix.shape, dtype),
        bias=None if student.bias is None else jnp.zeros(student.bias.shape, dtype),
    )


def _add_products(
    student: HeadInputs,
    gradient: StudentGradient,
    start: Array,
    hidden: Array,
    z_gradient: Array,
    keep: Array | None,
    options: SweepOptions,
) -> StudentGradient:
    """The two gradient products of a chunk; with `keep` [C] only of the rows it marks."""
    if keep is None:
        return StudentGradient(
            hidden=_putter(start)(gradient.hidden, hidden_gradient(student, z_gradient)),
            matrix=add_head_gradient(student, gradient.matrix, hidden, z_gradient, tiled=options.tiled),
            bias=_add_bias(gradient.bias, z_gradient),
        )

    # The kept rows first, then as many blocks as hold one.
    size = z_gradient.shape[0]
    block_size = max(1, size // 4)
    slots = -(-size // block_size) * block_size
    order = jnp.nonzero(keep, size=slots, fill_value=0)[0]
    count = jnp.sum(keep.astype(jnp.int32))

    def block(index: Array, gradient: StudentGradient) -> StudentGradient:
        rows = jax.lax.dynamic_slice_in_dim(order, index * block_size, block_size)
        live = index * block_size + jnp.arange(block_size) < count
        part = jnp.where(live[:, None], jnp.take(z_gradient, rows, axis=0), jnp.zeros((), z_gradient.dtype))
        to_hidden = jnp.where(live[:, None], hidden_gradient(student, part), 0.0)
        # Rows that are not live repeat row 0: adding their zeros leaves it as it is.
        return StudentGradient(
            hidden=gradient.hidden.at[start + rows].add(to_hidden),
            matrix=add_head_gradient(
                student, gradient.matrix, jnp.take(hidden, rows, axis=0), part, tiled=options.tiled
            ),
            bias=_add_bias(gradient.bias, part),
        )

    with jax.named_scope(f"kept_{block_size}_of_{size}"):
        return jax.lax.fori_loop(0, (count + block_size - 1) // block_size, block, gradient)


def _add_bias(total: Array | None, z_gradient: Array) -> Array | None:
    return None if total is None else total + jnp.sum(z_gradient.astype(total.dtype), axis=0)


def _putter(start: Array) -> Callable[[Array, Array], Array]:
    return lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)


def _shard_logits(z: Array, options: SweepOptions) -> Array:
    return z if options.logits_sharding is None else jax.lax.with_sharding_constraint(z, options.logits_sharding)
