"""The products of a language model's head with a chunk of hidden states, forward and backward.

Operands stay in the dtype of the hidden states, sums are taken in float32. A head is [D, V], or [V, D] where it is a
tied embedding table: contracting it as it is stored spares a transposed copy of the largest array of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array

# Columns of a head whose gradient is added up at a time on a CPU, so that the partial product stays in its cache: of
# [D, V], where a column is strided, and of [V, D].
CACHED_COLUMNS, CACHED_VOCAB_FIRST_COLUMNS = 1024, 2048


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadInputs:
    """Hidden states [N, D] of one model and its head.

    Attributes:
        hidden: [N, D].
        matrix: [D, V], or [V, D] if `vocab_first`.
        bias: [V], or None.
        vocab_first: Whether the matrix is an embedding table.
    """

    hidden: Array
    matrix: Array
    bias: Array | None
    vocab_first: bool = field(metadata={"static": True})

    @property
    def vocab_size(self) -> int:
        """V, padding included."""
        return self.matrix.shape[0 if self.vocab_first else 1]

    @property
    def sum_dtype(self) -> jnp.dtype:
        """In which products are summed: float32 (float64 for float64 operands)."""
        return jnp.dtype(jnp.float64 if self.hidden.dtype == jnp.float64 else jnp.float32)


def logits(model: HeadInputs, rows: Array) -> Array:
    """Logits [C, V] in float32 of the hidden states [C, D] in `rows`."""
    matrix = model.matrix.astype(rows.dtype)
    columns = 1 if model.vocab_first else 0
    result = _contract(rows, matrix, 1, columns, model.sum_dtype)
    return result if model.bias is None else result + model.bias.astype(result.dtype)[None]


def hidden_gradient(model: HeadInputs, logit_gradient: Array) -> Array:
    """The gradient [C, D] to hidden states, from that to their logits [C, V]."""
    matrix = model.matrix.astype(logit_gradient.dtype)
    columns = 0 if model.vocab_first else 1
    return _contract(logit_gradient, matrix, 1, columns, model.sum_dtype)


def add_head_gradient(model: HeadInputs, total: Array, rows: Array, logit_gradient: Array, *, tiled: bool) -> Array:
    """Adds the head's gradient of a chunk to `total`, which has the head's own layout.

    Args:
        model: Whose head.
        total: The gradient so far, [D, V] or [V, D].
        rows: Hidden states [C, D].
        logit_gradient: [C, V] in the dtype of `rows`.
        tiled: Whether to go some columns at a time, which needs no second array of the head's size.
    """

    def product(columns: Array) -> Array:
        pair = (columns, rows) if model.vocab_first else (rows, columns)
        return _contract(*pair, 0, 0, model.sum_dtype)

    if not tiled:
        return total + product(logit_gradient)

    vocabulary_axis = 0 if model.vocab_first else 1
    vocabulary = logit_gradient.shape[1]

    def add(start: Array | int, total: Array, width: int) -> Array:
        part = product(jax.lax.dynamic_slice_in_dim(logit_gradient, start, width, axis=1))
        part += jax.lax.dynamic_slice_in_dim(total, start, width, axis=vocabulary_axis)
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=vocabulary_axis)

    width = min(CACHED_VOCAB_FIRST_COLUMNS if model.vocab_first else CACHED_COLUMNS, vocabulary)
    tiles, ragged = divmod(vocabulary, width)
    total = jax.lax.fori_loop(0, tiles, lambda tile, total: add(tile * width, total, width), total)
    return add(tiles * width, total, ragged) if ragged else total


def _contract(a: Array, b: Array, axis_a: int, axis_b: int, dtype: jnp.dtype) -> Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=dtype)
