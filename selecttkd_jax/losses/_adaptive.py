"""Adaptive KL: forward and reverse KL, mixed by where the student is wrong."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import check_one_of
from selecttkd_jax.losses._closed_form import divergence_from_kernel
from selecttkd_jax.losses._kullback_leibler import forward_kernel, reverse_kernel
from selecttkd_jax.losses._mixtures import ratio


def adaptive_kl(student_logits: Logits, teacher_logits: Logits, *, mu: float = 0.5, boundary: str = "tail") -> PerToken:
    """Forward KL where the student errs on the teacher's likely tokens, reverse KL where it errs on the others.

        AKL = g_H / (g_H + g_T) KL(p || q) + g_T / (g_H + g_T) KL(q || p)

    with p the teacher, q the student, and g_H and g_T the sums of |p - q| over the teacher's head (its most likely
    tokens, with total probability about mu) and tail (the rest). The two shares are constants to differentiation.

    The token at which the head's mass passes mu belongs to the tail in the authors' code and to the head in DSKD's.
    The most likely token is always in the head. Tokens of equal probability go to one side together.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        mu: Probability mass of the head, in [0, 1]. DSKD's alpha is 1 - mu.
        boundary: Where the token that crosses mu goes: "tail" (AKL's authors) or "head" (DSKD).

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: an option is out of range.

    Source: Wu et al., 2025, "Rethinking Kullback-Leibler divergence in knowledge distillation for large language
    models"; Zhang et al., 2024, "Dual-space knowledge distillation".
    """
    check_in_range("mu", mu, 0.0, 1.0)
    check_one_of("boundary", boundary, ("tail", "head"))
    kernel = _boundary_in_tail_kernel if boundary == "tail" else _boundary_in_head_kernel
    return divergence_from_kernel(kernel, student_logits, teacher_logits, mu)


def _adaptive_kernel(student, teacher, mu, boundary):
    gap = jnp.abs(teacher.prob - student.prob)
    head_gap = jnp.sum(jnp.where(in_head(teacher.prob, mu, boundary), gap, 0.0), axis=-1)
    # At q = p both gaps vanish and so do both divergences: any share will do.
    head_share = jax.lax.stop_gradient(ratio(head_gap, jnp.sum(gap, axis=-1)))
    forward, forward_gradient = forward_kernel(student, teacher)
    reverse, reverse_gradient = reverse_kernel(student, teacher)
    share = head_share[..., None]
    gradient = share * forward_gradient + (1 - share) * reverse_gradient
    return _share_of(head_share, forward) + _share_of(1 - head_share, reverse), gradient


def _share_of(share: PerToken, divergence: PerToken) -> PerToken:
    """A share of zero silences an infinite divergence, too: 0 * inf would be NaN."""
    return jnp.where(share > 0, share * divergence, 0.0)


_boundary_in_tail_kernel = partial(_adaptive_kernel, boundary="tail")
_boundary_in_head_kernel = partial(_adaptive_kernel, boundary="head")


def in_head(p: Logits, mu: float | Array, boundary: str) -> Array:
    """Which tokens are among the most likely ones that together hold probability `mu`, [..., V] bool."""

    def fits(threshold: Array) -> Array:
        above = p >= threshold if boundary == "tail" else p > threshold
        mass = jnp.sum(jnp.where(above, p, 0.0), axis=-1, keepdims=True)
        # Rounding may lift the mass of all tokens above 1.
        return (mass <= mu if boundary == "tail" else mass < mu) | (mu >= 1)

    best = jnp.max(p, axis=-1, keepdims=True)
    return (p >= lowest_fitting(p, fits)) | (p == best)


def lowest_fitting(p: Logits, fits: Callable[[Array], Array]) -> Array:
    """The lowest probability that `fits` as a threshold, [..., 1], where all above it do.

    It is found by bisection over the bit patterns of floats, which order like the floats themselves. That takes one
    masked sum per bit, and neither a sort nor a gather: faster than sorting a large vocabulary, and a vocabulary
    sharded over devices stays where it is.
    """
    bits = jnp.int64 if p.dtype == jnp.float64 else jnp.int32

    def halve(_, bracket):
        too_low, fitting = bracket
        middle = too_low + (fitting - too_low) // 2
        fit = fits(jax.lax.bitcast_convert_type(middle, p.dtype))
        return jnp.where(fit, too_low, middle), jnp.where(fit, middle, fitting)

    best = jnp.max(p, axis=-1, keepdims=True)
    zero = jax.lax.bitcast_convert_type(jnp.zeros_like(best), bits)
    beyond = jax.lax.bitcast_convert_type(jnp.full_like(best, 2.0), bits)
    _, lowest = jax.lax.fori_loop(0, jnp.finfo(p.dtype).bits, halve, (zero, beyond))
    return jax.lax.bitcast_convert_type(lowest, p.dtype)
