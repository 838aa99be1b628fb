"""Skewed KL divergences: the second argument is mixed with the first, which bounds the log-ratio."""

from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._checks import check_in_range
from selecttkd_jax.losses._closed_form import divergence_from_kernel, finite, logit_gradient, relative_entropy
from selecttkd_jax.losses._mixtures import log_mixture, per_position, ratio

Skew = float | Array


def skew_kl(student_logits: Logits, teacher_logits: Logits, *, alpha: Skew = 0.1) -> PerToken:
    """Skewed forward KL of each position.

        SKL = KL(p || m),   m = alpha p + (1 - alpha) q

    with p the teacher and q the student; alpha is the *teacher's* share of the mixture. `alpha = 0` is `forward_kl`.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        alpha: A number in [0, 1), or an array that broadcasts against [..., 1] (for example [B, 1, 1] for one skew per
            sequence). Treated as a constant.

    Returns:
        [...] float32, in nats, in [0, log(1 / alpha)].

    Raises:
        InputError: alpha is out of range.

    Source: Ko et al., 2024, "DistiLLM"; SelecTKD supplement, Eq. 36.
    """
    check_in_range("alpha", alpha, 0.0, 1.0, include_high=False)
    return divergence_from_kernel(_skew_kernel, student_logits, teacher_logits, alpha)


def _skew_kernel(student, teacher, alpha):
    p, q, alpha = teacher.prob, student.prob, per_position(alpha, student.prob)
    m = alpha * p + (1 - alpha) * q
    log_m = log_mixture(m, alpha, teacher.log_prob, student.log_prob)
    value = relative_entropy(teacher, log_m)
    # q dD/dq = -(1 - alpha) p q / m; at alpha = 0 that is p also where q underflows.
    return value, logit_gradient(q, -(1 - alpha) * jnp.where(alpha > 0, q * ratio(p, m), p))


def skew_reverse_kl(
    student_logits: Logits, teacher_logits: Logits, *, alpha: Skew = 0.1, detach_mixture: bool = False
) -> PerToken:
    """Skewed reverse KL of each position.

        SRKL = KL(q || m),   m = (1 - alpha) p + alpha q

    with p the teacher and q the student; alpha is the *student's* share of the mixture. `alpha = 0` is `reverse_kl`.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        alpha: A number in [0, 1), or an array that broadcasts against [..., 1]. Treated as a constant.
        detach_mixture: Whether the student inside the mixture is a constant, as DistiLLM-2's released trainer has it.
            The value is the same, the gradient lacks -alpha q / m: same fixed point, and 1 / (1 - alpha) times as steep
            near it. False, the whole gradient, is DistiLLM's.

    Returns:
        [...] float32, in nats, in [0, log(1 / alpha)].

    Raises:
        InputError: alpha is out of range.

    Source: Ko et al., 2024, "DistiLLM"; Ko et al., 2025, "DistiLLM-2"; SelecTKD supplement, Eq. 39.
    """
    check_in_range("alpha", alpha, 0.0, 1.0, include_high=False)
    kernel = _detached_skew_reverse_kernel if detach_mixture else _skew_reverse_kernel
    return divergence_from_kernel(kernel, student_logits, teacher_logits, alpha)


def _skew_reverse_kernel(student, teacher, alpha, detach_mixture=False):
    p, q, alpha = teacher.prob, student.prob, per_position(alpha, student.prob)
    m = (1 - alpha) * p + alpha * q
    log_m = log_mixture(m, alpha, student.log_prob, teacher.log_prob)
    if detach_mixture:
        log_m = jax.lax.stop_gradient(log_m)
    value = relative_entropy(student, log_m)
    # dD/dq = log(q / m) + 1 - alpha q / m; the 1 drops out of the logit gradient.
    slope = finite(jnp.where(q > 0, student.log_prob - log_m, 0.0))
    if not detach_mixture:
        slope -= alpha * ratio(q, m)
    return value, logit_gradient(q, q * slope)


_detached_skew_reverse_kernel = partial(_skew_reverse_kernel, detach_mixture=True)
