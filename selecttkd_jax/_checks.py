"""Checks of arrays and numbers at the boundary: one sentence saying what was expected and what was found."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from selecttkd_jax._errors import InputError, check_at_least


def check_same_shape(name_a: str, a: jax.Array, name_b: str, b: jax.Array) -> None:
    """Raises InputError unless `a` and `b` have the same shape."""
    if jnp.shape(a) != jnp.shape(b):
        raise InputError(f"{name_a} and {name_b} must have the same shape, got {jnp.shape(a)} and {jnp.shape(b)}")


def check_rank(name: str, array: jax.Array | np.ndarray, rank: int) -> None:
    """Raises InputError unless `array` has `rank` axes."""
    if jnp.ndim(array) != rank:
        raise InputError(f"{name} must have {rank} axes, got shape {jnp.shape(array)}")


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` holds floating-point numbers."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {dtype}")


def check_in_range(name: str, value: float | jax.Array, low: float, high: float, *, include_high: bool = True) -> None:
    """Raises InputError unless `low <= value <= high` (or `< high`). Traced values pass unseen."""
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    inside = (values >= low) & ((values <= high) if include_high else (values < high))
    if not inside.all():
        bracket = "]" if include_high else ")"
        raise InputError(f"{name} must be in [{low}, {high}{bracket}, got {value}")


def as_mask(mask: jax.Array | np.ndarray, rank: int | None = 2) -> jax.Array:
    """`mask` as booleans.

    Raises InputError unless it has `rank` axes (None: any number) and holds, where its values can be seen, only 0 and
    1; TypeError unless it is boolean or integer. Weights would pass unseen under jit, and each count as 1.
    """
    if rank is not None:
        check_rank("mask", mask, rank)
    dtype = jnp.result_type(mask)
    if dtype == jnp.bool_:
        return jnp.asarray(mask)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"mask must be boolean or integer, got {dtype}: hand over `mask > 0` for the positions that count; weights "
            "go through `acceptance`"
        )
    if not isinstance(mask, Tracer):
        # In NumPy: under jit even a concrete array compares to a traced one.
        values = np.asarray(mask)
        if not ((values == 0) | (values == 1)).all():
            raise InputError("mask must be boolean or hold only 0 and 1; other values look like token ids")
    return jnp.asarray(mask) != 0


def check_count(name: str, value: int) -> None:
    """Raises InputError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    check_at_least(name, value, 1)
