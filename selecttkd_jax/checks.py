"""Checks at the boundary: one sentence saying what was expected and what was found.

`InputError` marks a mistake in what the caller handed in. The command line shows it as one line; every other
exception is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class InputError(ValueError):
    """Something handed in by the caller is wrong; the message says what, and what to do."""


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

    Raises InputError unless it has `rank` axes (None: any number) and is boolean or, where its values can be seen, 0/1.
    """
    if rank is not None:
        check_rank("mask", mask, rank)
    if jnp.result_type(mask) == jnp.bool_:
        return jnp.asarray(mask)
    if not isinstance(mask, Tracer):
        # In NumPy: under jit even a concrete array compares to a traced one.
        values = np.asarray(mask)
        if not ((values == 0) | (values == 1)).all():
            raise InputError("mask must be boolean or hold only 0 and 1; other values look like weights or token ids")
    return jnp.asarray(mask) != 0


def check_at_least(name: str, value: float, low: float) -> None:
    """Raises InputError unless `value >= low`."""
    if not value >= low:
        raise InputError(f"{name} must be at least {low}, got {value}")


def check_count(name: str, value: int) -> None:
    """Raises InputError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    check_at_least(name, value, 1)


def check_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `allowed`; the message names the closest match."""
    allowed = list(allowed)
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{did_you_mean(value, allowed)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `name`, or nothing."""
    matches = get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
