"""The two Kullback-Leibler divergences, forward (mode covering) and reverse (mode seeking)."""

import jax.numpy as jnp

from selecttkd_jax._array_types import Logits, PerToken
from selecttkd_jax.losses._closed_form import Distribution, divergence_from_kernel, finite, relative_entropy


def forward_kl(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Forward KL divergence of each position, the teacher's distribution first.

        KL(p || q) = sum_v p log(p / q)

    with p the teacher and q the student. Infinite where the teacher expects a token the student excludes.

    Returns:
        [...] float32, in nats, at least 0.

    Example:
        >>> logits = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
        >>> print(f"{forward_kl(*logits):.4f}")
        0.1308

    Source: Hinton et al., 2015, "Distilling the knowledge in a neural network"; SelecTKD supplement, section F.
    """
    return divergence_from_kernel(forward_kernel, student_logits, teacher_logits)


def forward_kernel(student: Distribution, teacher: Distribution) -> tuple[PerToken, Logits]:
    """Forward KL and its student-logit gradient, q - p."""
    gradient = student.prob - teacher.prob
    return relative_entropy(teacher, student.log_prob), gradient


def reverse_kl(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Reverse KL divergence of each position, the student's distribution first.

        KL(q || p) = sum_v q log(q / p)

    with p the teacher and q the student. Infinite where the student expects a token the teacher excludes.

    Returns:
        [...] float32, in nats, at least 0.

    Source: Gu et al., 2024, "MiniLLM"; SelecTKD supplement, section F.
    """
    return divergence_from_kernel(reverse_kernel, student_logits, teacher_logits)


def reverse_kernel(student: Distribution, teacher: Distribution) -> tuple[PerToken, Logits]:
    """Reverse KL and its student-logit gradient, q (log(q / p) - KL)."""
    value = relative_entropy(student, teacher.log_prob)
    # q dD/dq is q log(q/p) + q, whose sum is the value + 1: the mean is at hand, no second reduction is needed.
    log_ratio = jnp.where(student.prob > 0, student.log_prob - teacher.log_prob, 0.0)
    return value, student.prob * (finite(log_ratio) - finite(value)[..., None])
