"""Two metrics between distributions: total variation and Hellinger. Both are bounded by 1."""

import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax.losses._closed_form import divergence_from_kernel, logit_gradient


def total_variation(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Total variation distance of each position.

        TV(p, q) = 1/2 sum_v |p - q| = 1 - sum_v min(p, q)

    with p the teacher and q the student: the probability that a speculative sample of the student is rejected. Where
    p = q for a token, its subgradient is 0.

    Returns:
        [...] float32 in [0, 1].

    Source: Wen et al., 2023, "f-divergence minimization for sequence-level knowledge distillation".
    """
    return divergence_from_kernel(_total_variation_kernel, student_logits, teacher_logits)


def _total_variation_kernel(student, teacher):
    difference = student.prob - teacher.prob
    weighted_slope = 0.5 * student.prob * jnp.sign(difference)
    # Rounding may lift the distance of disjoint distributions above 1.
    return jnp.minimum(0.5 * jnp.sum(jnp.abs(difference), axis=-1), 1.0), logit_gradient(student.prob, weighted_slope)


def hellinger(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Hellinger distance of each position.

        H(p, q) = || sqrt(p) - sqrt(q) ||_2 / sqrt(2) = sqrt(1 - sum_v sqrt(p q))

    with p the teacher and q the student. A distance, not its square; at p = q its subgradient is 0.

    Returns:
        [...] float32 in [0, 1].

    Source: SelecTKD main text, Hellinger weighting.
    """
    return divergence_from_kernel(_hellinger_kernel, student_logits, teacher_logits)


def _hellinger_kernel(student, teacher):
    root_p, root_q = root(teacher.prob), root(student.prob)
    # The sum of squared differences keeps its digits where 1 - sum sqrt(p q) would cancel.
    value = root(0.5 * jnp.sum(jnp.square(root_p - root_q), axis=-1))
    # dH/dq = -sqrt(p / q) / (4 H). The distance is a cone around q = p: where rounding is all that is left of it, its
    # slope is of full size in a direction without meaning, so that counts as the tip.
    off_tip = value > 4 * jnp.finfo(value.dtype).eps
    scale = jnp.where(off_tip, -0.25 / jnp.where(off_tip, value, 1.0), 0.0)
    return value, logit_gradient(student.prob, scale[..., None] * root_p * root_q)


def root(values: Array) -> Array:
    """The square root, with derivative 0 at 0: an excluded token stays excluded, and the tip of the cone is flat."""
    nothing = values <= 0
    return jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, values)))
