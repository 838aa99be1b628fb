"""The generalised Jensen-Shannon divergence of GKD."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError
from selecttkd_jax.losses._closed_form import divergence_from_kernel, logit_gradient, relative_entropy
from selecttkd_jax.losses._mixtures import log_mixture, per_position


def jensen_shannon(student_logits: Logits, teacher_logits: Logits, *, beta: float | Array = 0.5) -> PerToken:
    """Generalised Jensen-Shannon divergence of each position.

        JSD = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

    with p the teacher and q the student; beta is the *teacher's* share, of the mixture and of the sum. Symmetric at
    0.5. Towards either end it tends to zero: JSD / beta -> KL(p || q) and JSD / (1 - beta) -> KL(q || p). Libraries
    that accept 0 and 1 jump to the KL divergences there; here those are asked for by name.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        beta: Strictly between 0 and 1, or an array of such that broadcasts against [..., 1]. Treated as a constant.

    Returns:
        [...] float32, in nats, in [0, log 2].

    Raises:
        InputError: beta is out of range.

    Source: Agarwal et al., 2024, "On-policy distillation of language models" (GKD), Eq. 1.
    """
    check_share(beta)
    return divergence_from_kernel(_jensen_shannon_kernel, student_logits, teacher_logits, beta)


def check_share(beta: float | Array) -> None:
    """Raises InputError unless 0 < beta < 1. Traced values pass unseen."""
    check_in_range("beta", beta, 0.0, 1.0)
    if not isinstance(beta, Tracer) and np.any((np.asarray(beta) == 0) | (np.asarray(beta) == 1)):
        raise InputError(
            f"beta must lie strictly between 0 and 1, got {beta}: at 0 and 1 the divergence is zero everywhere; for "
            "what other libraries mean there use losses.forward_kl (0) and losses.reverse_kl (1)"
        )


def _jensen_shannon_kernel(student, teacher, beta):
    p, q, beta = teacher.prob, student.prob, per_position(beta, student.prob)
    log_m = log_mixture(beta * p + (1 - beta) * q, beta, teacher.log_prob, student.log_prob)
    from_teacher = relative_entropy(teacher, log_m)
    from_student = relative_entropy(student, log_m)
    share = beta[..., 0]
    value = share * from_teacher + (1 - share) * from_student
    # dD/dq = (1 - beta) log(q / m): the derivatives through m cancel, as beta p + (1 - beta) q is m again.
    slope = (1 - beta) * jnp.where(q > 0, student.log_prob - log_m, 0.0)
    return value, logit_gradient(q, q * slope)
