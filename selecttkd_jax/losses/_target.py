"""The KL divergence taken apart at the label: how likely the label is, and what the rest looks like.

With g the label, p the teacher and q the student,

    KL(p || q) = TCKD + (1 - p(g)) NCKD

where TCKD compares the probabilities of the label, and NCKD the distributions over the other tokens.
"""

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Int, Logits, PerToken
from selecttkd_jax.losses._closed_form import Distribution, divergence_from_kernel, relative_entropy
from selecttkd_jax.losses._cross_entropy import check_labels, pick
from selecttkd_jax.losses._kullback_leibler import forward_kernel


def target_kl(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """Target-class divergence of each position: is the label as likely as the teacher finds it?

        TCKD = p(g) log(p(g) / q(g)) + (1 - p(g)) log((1 - p(g)) / (1 - q(g)))

    with g the label, p the teacher and q the student.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        labels: [...] integers. Positions whose label is outside [0, V) give a finite number without meaning; mask them.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: The shapes do not match.
        TypeError: The logits are not floating point, or the labels not integers.

    Source: Zhong et al., 2024, "Revisiting knowledge distillation for autoregressive language models" (ATKD).
    """
    check_labels(student_logits, labels)
    return divergence_from_kernel(_target_kernel, student_logits, teacher_logits, labels)


def non_target_kl(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """Non-target divergence of each position: are the other tokens ordered as the teacher orders them?

        NCKD = KL(p' || q'),   p'(v) = p(v) / (1 - p(g)) for v != g, and q' likewise

    with g the label, p the teacher and q the student. The factor 1 - p(g) of the full KL is left out, which is the
    point: the more certain the teacher is of the label, the more that factor hides what else it knows.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        labels: [...] integers. Positions whose label is outside [0, V) give a finite number without meaning; mask them.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: The shapes do not match.
        TypeError: The logits are not floating point, or the labels not integers.

    Source: Zhong et al., 2024 (ATKD).
    """
    check_labels(student_logits, labels)
    return divergence_from_kernel(_non_target_kernel, student_logits, teacher_logits, labels)


def decoupled_kl(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """TCKD + NCKD, ATKD's loss of a hard token; of an easy one it keeps `non_target_kl` alone.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        labels: [...] integers. Positions whose label is outside [0, V) give a finite number without meaning; mask them.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: The shapes do not match.
        TypeError: The logits are not floating point, or the labels not integers.

    Source: Zhong et al., 2024 (ATKD).
    """
    return target_kl(student_logits, teacher_logits, labels) + non_target_kl(student_logits, teacher_logits, labels)


def _target_kernel(student, teacher, labels):
    log_q, log_p = student.log_prob, teacher.log_prob
    target = is_target(log_q, labels)
    # The mass of the others is summed, not taken as 1 - p(g): that would be 0, with an infinite log, for p(g) near 1.
    log_rest_q = log_rest(log_q, target)
    log_pair_p = jnp.stack([pick(log_p, labels), log_rest(log_p, target)], axis=-1)
    log_pair_q = jnp.stack([pick(log_q, labels), log_rest_q], axis=-1)
    pair_p, pair_q = jnp.exp(log_pair_p), jnp.exp(log_pair_q)
    value = relative_entropy(Distribution(pair_p, log_pair_p), log_pair_q)
    # The label's gradient is q(g) - p(g); the other tokens share its opposite in proportion to q. Taken from the two
    # smaller numbers: between two probabilities next to 1 the difference would have no digits left.
    surplus = jnp.where(pair_q[..., 0] < 0.5, (pair_q - pair_p)[..., 0], (pair_p - pair_q)[..., 1])
    other_shares = jnp.exp(without(log_q, target, log_rest_q))
    return value, surplus[..., None] * jnp.where(target, 1.0, -other_shares)


def _non_target_kernel(student, teacher, labels):
    target = is_target(student.log_prob, labels)
    log_p = without(teacher.log_prob, target, log_rest(teacher.log_prob, target))
    log_q = without(student.log_prob, target, log_rest(student.log_prob, target))
    return forward_kernel(Distribution(jnp.exp(log_q), log_q), Distribution(jnp.exp(log_p), log_p))


def is_target(logits: Logits, labels: Array) -> Array:
    """Which entry of the vocabulary is the label, [..., V] bool."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels.astype(jnp.int32)[..., None]


def log_rest(log_probs: Logits, target: Array) -> PerToken:
    """The log-probability of everything but the target."""
    return jax.nn.logsumexp(jnp.where(target, -jnp.inf, log_probs), axis=-1)


def without(log_probs: Logits, target: Array, rest: PerToken) -> Logits:
    """Log-probabilities over everything but the target (for which they are -inf)."""
    finite_rest = jnp.where(rest > -jnp.inf, rest, 0.0)
    return jnp.where(target, -jnp.inf, log_probs - finite_rest[..., None])
