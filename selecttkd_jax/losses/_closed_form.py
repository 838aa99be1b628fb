"""Divergences with their gradient in closed form: the machinery every divergence of this room stands on.

A divergence D(q, p) of next-token distributions has the student-logit gradient

    dD/dz_q = w - q * sum_v w_v,        w = q * dD/dq        (p is the teacher, q the student)

so one sweep yields the value and the whole gradient: autodiff would keep several [..., V] intermediates and meet
0 * inf at masked vocabulary entries. A *kernel* computes both from the two distributions; `divergence_from_kernel`
turns it into a function of logits that JAX differentiates (and transposes, and differentiates again) like any other.

The teacher is a constant: its gradient is exactly zero. So is whatever else a gradient leaves out (options, a detached
mixture, the shares of adaptive KL): every further derivative is one of the gradient as it stands.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._checks import check_floating, check_same_shape
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import any_mesh


class Distribution(NamedTuple):
    """A next-token distribution, [..., V] both. -inf as a logit is probability 0 and log-probability -inf."""

    prob: Array
    log_prob: Array


# kernel(student, teacher, *options) -> (value [...], gradient of the value to the student's logits [..., V])
Kernel = Callable[..., tuple[PerToken, Logits]]


def distribution(logits: Logits) -> Distribution:
    """softmax(logits) and its logarithm, from one exponential per entry."""
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exponentials = jnp.exp(shifted)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return Distribution(exponentials / total, shifted - jnp.log(total))


def as_float32(logits: Logits) -> Logits:
    """Casts to float32, the least precision anything here computes in (float64 stays)."""
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def check_logits(student_logits: Logits, teacher_logits: Logits) -> None:
    """Raises TypeError or InputError unless both are floating point and have one shape with a vocabulary axis."""
    check_floating("student_logits", student_logits)
    if teacher_logits is None:
        raise InputError("this divergence or verifier asks the teacher, whose logits are None")
    check_floating("teacher_logits", teacher_logits)
    check_same_shape("student_logits", student_logits, "teacher_logits", teacher_logits)


@any_mesh(like="student_logits", drop=1)
def divergence_from_kernel(
    kernel: Kernel, student_logits: Logits, teacher_logits: Logits, *options: Array | float
) -> PerToken:
    """Evaluates `kernel` on logits, differentiable to the student's.

    Args:
        kernel: `(student, teacher, *options) -> (value [...], student-logit gradient [..., V])` of two
            `Distribution`s.
        student_logits: [..., V], any float dtype; log-probabilities are valid logits; -inf marks impossible tokens.
        teacher_logits: [..., V].
        *options: Arrays or numbers the kernel takes. They are constants to differentiation.

    Returns:
        The divergence of each position, [...] float32.
    """
    check_logits(student_logits, teacher_logits)
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    options = jax.tree.map(jax.lax.stop_gradient, options)
    return _evaluate(kernel, as_float32(student_logits), as_float32(teacher_logits), options)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate(kernel, student_logits, teacher_logits, options):
    value, _ = kernel(distribution(student_logits), distribution(teacher_logits), *options)
    return value


@_evaluate.defjvp
def _evaluate_jvp(kernel, primals, tangents):
    value, gradient = _evaluate_with_gradient(kernel, *primals)
    return value, jnp.sum(gradient * tangents[0], axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate_with_gradient(kernel, student_logits, teacher_logits, options):
    return kernel(distribution(student_logits), distribution(teacher_logits), *options)


@_evaluate_with_gradient.defjvp
def _evaluate_with_gradient_jvp(kernel, primals, tangents):
    # Without a rule of its own, a value that comes with a gradient would be differentiated as it was computed: through
    # what the gradient holds constant, and through logarithms and roots of excluded tokens.
    student_logits, teacher_logits, options = primals
    value, gradient = _evaluate_with_gradient(kernel, *primals)

    def gradient_at(logits: Logits) -> Logits:
        return kernel(distribution(logits), distribution(teacher_logits), *options)[1]

    _, gradient_tangent = jax.jvp(gradient_at, (student_logits,), (tangents[0],))
    return (value, gradient), (jnp.sum(gradient * tangents[0], axis=-1), gradient_tangent)


def logit_gradient(q: Logits, weighted_slope: Logits) -> Logits:
    """`w - q * sum(w)`: the student-logit gradient, from `w = q * dD/dq`."""
    return weighted_slope - q * jnp.sum(weighted_slope, axis=-1, keepdims=True)


def relative_entropy(a: Distribution, log_b: Logits) -> PerToken:
    """KL(a || b) = sum a * (log a - log b).

    Entries of probability zero contribute nothing, also when both logs are -inf. The rounding of the two normalisers
    (a few 1e-7 nats) may fall on either side of zero for equal distributions; a divergence is never below it.
    """
    log_ratio = jnp.where(a.prob > 0, a.log_prob - log_b, 0.0)
    return jnp.maximum(jnp.sum(a.prob * log_ratio, axis=-1), 0.0)


def finite(values: Array) -> Array:
    """`values` without +inf, for slopes of a divergence that is infinite.

    The gradient of a position that has no weight is 0 times its slope, which must be 0 and not NaN.
    """
    return jnp.minimum(values, 0.5 * jnp.finfo(values.dtype).max)
