"""Cross-entropy on labels and on the teacher's distribution."""

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, Int, Logits, PerToken
from selecttkd_jax.checks import InputError, check_floating
from selecttkd_jax.losses.closed_form import as_float32


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
    vocabulary = jax.lax.broadcasted_iota(token_ids.dtype, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(vocabulary == token_ids[..., None], values, 0.0), axis=-1)
