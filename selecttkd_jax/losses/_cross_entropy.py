"""Cross-entropy on labels and on the teacher's distribution."""

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Int, Logits, PerToken
from selecttkd_jax._checks import check_floating
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses._closed_form import as_float32, divergence_from_kernel


@any_mesh(like="student_logits", drop=1)
def cross_entropy(student_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """Cross-entropy of each position's label.

        CE = -log q(label)

    Args:
        student_logits: [..., V], any float dtype. -inf excludes a token.
        labels: [...] integers. Positions whose label is outside [0, V) (such as -100) give a finite number without
            meaning; mask them.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: The shapes do not match.
        TypeError: The logits are not floating point, or the labels not integers.
    """
    check_floating("student_logits", student_logits)
    check_labels(student_logits, labels)
    logits = as_float32(student_logits)
    return jax.nn.logsumexp(logits, axis=-1) - pick(logits, labels)


@any_mesh(like="student_logits", drop=1)
def hard_cross_entropy(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """Cross-entropy of each position's label, or of the teacher's first choice where there is none.

        CE = -log q(y),   y = label where it is at least 0, else argmax p

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        labels: [...] integers; negative where the teacher is to say what comes next.

    Returns:
        [...] float32, in nats, at least 0.

    Source: Lin et al., 2020, "Autoregressive Knowledge Distillation through Imitation Learning".
    """
    check_labels(student_logits, labels)
    labels = labels.astype(jnp.int32)  # the teacher's choice may not fit their dtype
    first_choice = jnp.argmax(jax.lax.stop_gradient(teacher_logits), axis=-1).astype(jnp.int32)
    return cross_entropy(student_logits, jnp.where(labels < 0, first_choice, labels))


def check_labels(logits: Logits, labels: Array) -> None:
    """Raises TypeError or InputError unless `labels` are integers, one for each position of `logits`."""
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"labels must be integers, got {jnp.result_type(labels)}")
    if jnp.shape(labels) != jnp.shape(logits)[:-1]:
        raise InputError(f"labels must have the shape of the positions, {jnp.shape(logits)[:-1]}, got {labels.shape}")


def pick(values: Logits, token_ids: Int[Array, "*positions"]) -> PerToken:
    """The value at each position's token, 0 for a token outside the vocabulary.

    A masked sum, not a gather: it fuses into its neighbours, and a vocabulary sharded over devices stays where it is.
    """
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(vocabulary == token_ids.astype(jnp.int32)[..., None], values, 0.0), axis=-1)


def soft_cross_entropy(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Cross-entropy of the student on the teacher's distribution.

        soft CE = -sum_v p log q = KL(p || q) + H(p)

    with p the teacher and q the student. Its gradient is forward KL's, q - p; its least value is the teacher's
    entropy, so it is no divergence.

    Returns:
        [...] float32, in nats, at least 0.

    Source: Hinton et al., 2015, "Distilling the knowledge in a neural network".
    """
    return divergence_from_kernel(_soft_cross_entropy_kernel, student_logits, teacher_logits)


def _soft_cross_entropy_kernel(student, teacher):
    surprise = jnp.where(teacher.prob > 0, -student.log_prob, 0.0)
    return jnp.sum(teacher.prob * surprise, axis=-1), student.prob - teacher.prob


@any_mesh(like="logits", drop=1)
def entropy(logits: Logits) -> PerToken:
    """Entropy of each position's distribution.

        H(p) = -sum_v p log p

    Args:
        logits: [..., V], any float dtype. -inf excludes a token.

    Returns:
        [...] float32, in nats, in [0, log V].
    """
    check_floating("logits", logits)
    log_p = jax.nn.log_softmax(as_float32(logits))
    # The inner `where` keeps -inf out of the product, whose derivative would be 0 * inf.
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)
