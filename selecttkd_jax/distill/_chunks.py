"""An objective's per-token half, a few time steps at a time, with the gradient taken in the forward sweep.

Logits are large: at 1,024 positions of 50,000 tokens every intermediate array is 200 MB, and a CPU spends more time
fetching memory than computing. A chunk's intermediates stay in its cache. Positions do not depend on each other, so a
chunk's gradient is known as soon as its values are; the backward pass only scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits
from selecttkd_jax._mesh_axes import vary_alike
from selecttkd_jax.distill._sums import TokenTerms

CACHED_POSITIONS = 8


def on_cpu() -> bool:
    """Whether what is being traced will run on CPUs: those of the current mesh (`jax.set_mesh`), or else the default.

    They can differ: a program for an accelerator can be written and compiled on a machine that has none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


def cached_chunk_size(rows: int) -> int | None:
    """The `chunk_size` that keeps a batch of `rows` rows in a CPU's cache; None on accelerators, which need no chunks.

    Args:
        rows: B on this process, within one micro-batch.
    """
    return max(1, CACHED_POSITIONS // rows) if on_cpu() else None


def terms_by_chunks(
    token_terms: Callable[..., TokenTerms], chunk_size: int, student_logits: Logits, rest: Any
) -> TokenTerms:
    """`token_terms(student_logits, **rest)`, evaluated `chunk_size` time steps at a time.

    Chunks run along T, which meshes do not shard: rows stay on their devices.

    Args:
        token_terms: Of some positions' logits; hashable, such as the method of an `Objective`.
        chunk_size: Time steps in a chunk, of all rows; need not divide T.
        student_logits: [B, T, V].
        rest: The other arguments of `token_terms` by name: [B, T, ...] arrays or None.

    Returns:
        TokenTerms of [B, T]; `loss` is differentiable to the student's logits.
    """
    rest = jax.tree.map(jax.lax.stop_gradient, rest)
    student_logits, rest = vary_alike((student_logits, rest), like=(student_logits, rest))
    return _terms(token_terms, chunk_size, student_logits, rest)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _terms(token_terms, chunk_size, student_logits, rest):
    def evaluate(logits, others):
        return token_terms(logits, **others)

    return _over_chunks(evaluate, chunk_size, (student_logits, rest))


def _terms_and_gradient(token_terms, chunk_size, student_logits, rest):
    def evaluate(logits, others):
        def summed(z):
            terms = token_terms(z, **others)
            return jnp.sum(terms.loss), terms

        gradient, terms = jax.grad(summed, has_aux=True)(logits)
        return terms, gradient

    return _over_chunks(evaluate, chunk_size, (student_logits, rest))


def _scale_gradient(token_terms, chunk_size, gradient, cotangent):
    del token_terms, chunk_size
    return (cotangent.loss[..., None] * gradient.astype(jnp.float32)).astype(gradient.dtype), None


_terms.defvjp(_terms_and_gradient, _scale_gradient)


def _over_chunks(function, chunk_size: int, arrays):
    """Applies `function` to slices of `arrays` along axis 1 and puts the results together, in place."""
    length = jax.tree.leaves(arrays)[0].shape[1]
    chunk_size = min(chunk_size, length)
    whole_chunks, ragged = divmod(length, chunk_size)

    def piece(start: Array | int, size: int):
        return function(*jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1), arrays))

    def place(results, start, values):
        return jax.tree.map(lambda r, v: jax.lax.dynamic_update_slice_in_dim(r, v, start, axis=1), results, values)

    shapes = jax.eval_shape(lambda a: function(*a), arrays)
    results = vary_alike(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), like=arrays)
    results = jax.lax.fori_loop(
        0, whole_chunks, lambda i, r: place(r, i * chunk_size, piece(i * chunk_size, chunk_size)), results
    )
    if ragged:
        start = whole_chunks * chunk_size
        results = place(results, start, piece(start, ragged))
    return results
