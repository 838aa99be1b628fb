"""Mixtures of teacher and student, for the divergences that compare a distribution with one."""

import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits
from selecttkd_jax._errors import InputError


def per_position(option: float | Array, logits: Logits) -> Array:
    """A number or array in the dtype of `logits`, and of their rank, so that it broadcasts along the vocabulary."""
    option = jnp.asarray(option, logits.dtype)
    if option.ndim and (option.shape[-1] != 1 or option.ndim > logits.ndim):
        raise InputError(
            "an option must be a number or have the axes of the positions and a last one of size 1, got "
            f"{option.shape} for logits {logits.shape}"
        )
    return option.reshape((1,) * (logits.ndim - option.ndim) + option.shape)


def log_mixture(mixture: Logits, share: Array, log_a: Logits, log_b: Logits) -> Logits:
    """log(share a + (1 - share) b), given the mixture itself.

    Where the mixture underflows, the larger of the two terms stands for their sum: exact when `share` is 0, and
    without weight otherwise, as then neither distribution has mass there.
    """
    larger = jnp.maximum(jnp.log(share) + log_a, jnp.log1p(-share) + log_b)
    normal = mixture > jnp.finfo(mixture.dtype).tiny
    # The inner `where` keeps 0 out of the logarithm, whose derivative there is infinite.
    return jnp.where(normal, jnp.log(jnp.where(normal, mixture, 1.0)), larger)


def ratio(numerator: Logits, denominator: Logits) -> Logits:
    """The quotient, and 0 where the denominator is 0: there the numerator has no mass either."""
    return jnp.where(denominator > 0, numerator, 0.0) / jnp.where(denominator > 0, denominator, 1.0)
