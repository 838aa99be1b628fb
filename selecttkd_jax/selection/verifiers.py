"""Verifiers: does the teacher accept the token the student would propose?

A verifier maps the logits of a position to its acceptance, the probability in [0, 1] that the proposal passes. It is
computed from the raw distributions at temperature 1 and never differentiated.
"""

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, Logits, PerToken
from selecttkd_jax.checks import InputError
from selecttkd_jax.losses.closed_form import as_float32, check_logits


def greedy_top_k(student_logits: Logits, teacher_logits: Logits, *, k: int = 5) -> PerToken:
    """Accepts a position whose most likely student token is among the teacher's k most likely.

        acceptance = 1  if  #{v : z_p[v] > z_p[y]} < k,  y = argmax_v z_q[v],  else 0

    Counting needs no sort, and no gather across a vocabulary sharded over devices. Ties: the student proposes the
    lowest of its best token ids; tokens that tie with the teacher's k-th are all among its top k.

    Args:
      student_logits: [..., V], any float dtype.
      teacher_logits: [..., V].
      k: From 1 (the two argmaxes agree) to V (everything passes).

    Returns:
      Acceptance [...] float32, 0 or 1.

    Raises:
      InputError: The shapes differ, or k is out of range.
      TypeError: The logits are not floating point, or k is not an integer.

    Source: SelecTKD supplement, section A ("greedy Top-k").
    """
    student_logits, teacher_logits = _constants(student_logits, teacher_logits)
    _check_k(k, most=student_logits.shape[-1])
    return (_teacher_rank(student_logits, teacher_logits) < k).astype(jnp.float32)


def _teacher_rank(student_logits: Logits, teacher_logits: Logits) -> Array:
    """How many tokens the teacher finds more likely than the student's best one, [...] int32."""
    token_ids = jax.lax.broadcasted_iota(jnp.int32, student_logits.shape, student_logits.ndim - 1)
    is_best = student_logits == jnp.max(student_logits, axis=-1, keepdims=True)
    proposal = jnp.min(jnp.where(is_best, token_ids, jnp.iinfo(jnp.int32).max), axis=-1, keepdims=True)
    proposal_logit = jnp.max(jnp.where(token_ids == proposal, teacher_logits, -jnp.inf), axis=-1, keepdims=True)
    return jnp.sum((teacher_logits > proposal_logit).astype(jnp.int32), axis=-1)


def spec_k(student_logits: Logits, teacher_logits: Logits, *, k: int = 5) -> PerToken:
    """The probability that at least one of k student samples passes the speculative test.

        acceptance = 1 - TV(p, q)^k,   TV(p, q) = 1 - sum_v min(p, q)

    One sample y ~ q passes with probability E[min(1, p(y) / q(y))] = sum_v min(p, q), and the k samples are
    independent. One uniform draw against this acceptance (see `token_weights`) therefore has exactly the law of
    drawing k tokens and testing each, without sampling from the vocabulary.

    Args:
      student_logits: [..., V], any float dtype.
      teacher_logits: [..., V].
      k: Number of candidates, at least 1.

    Returns:
      Acceptance [...] float32 in [0, 1].

    Raises:
      InputError: The shapes differ, or k < 1.
      TypeError: The logits are not floating point, or k is not an integer.

    Source: SelecTKD supplement, section A ("non-greedy Spec-k"); Leviathan et al., 2023, Theorem 3.5.
    """
    student_logits, teacher_logits = _constants(student_logits, teacher_logits)
    _check_k(k)
    overlap = jnp.sum(jnp.minimum(jax.nn.softmax(student_logits), jax.nn.softmax(teacher_logits)), axis=-1)
    # 1 - (1 - overlap)^k without cancellation for a small overlap.
    return -jnp.expm1(k * jnp.log1p(-jnp.minimum(overlap, 1.0)))


def accept_all(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Accepts every position: distillation without selection.

    Args:
      student_logits: [..., V].
      teacher_logits: [..., V]. Unused.

    Returns:
      Ones, [...] float32.
    """
    del teacher_logits
    return jnp.ones(jnp.shape(student_logits)[:-1], jnp.float32)


def _constants(student_logits: Logits, teacher_logits: Logits) -> tuple[Logits, Logits]:
    check_logits(student_logits, teacher_logits)
    return jax.lax.stop_gradient((as_float32(student_logits), as_float32(teacher_logits)))


def _check_k(k: int, most: int | None = None) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k < 1 or (most is not None and k > most):
        raise InputError(f"k must be at least 1{f' and at most the vocabulary size {most}' if most else ''}, got {k}")
