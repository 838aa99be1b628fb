"""Equality of functions with bound options, so that an objective can be a static argument of `jax.jit`.

`functools.partial` compares by identity: two equal objectives would compile twice. Compared by what they compute, a
function and its bound options, they compile once.
"""

from collections.abc import Hashable
from functools import partial
from typing import Any


def static_key(value: Any) -> Hashable:
    """A hashable stand-in for `value`, equal for partials of the same function with the same options.

    Raises:
        TypeError: A bound option is an array or otherwise unhashable.
    """
    if isinstance(value, partial):
        options = tuple((name, static_key(option)) for name, option in sorted(value.keywords.items()))
        return ("partial", static_key(value.func), tuple(static_key(argument) for argument in value.args), options)
    if isinstance(value, tuple):
        return ("tuple", *(static_key(entry) for entry in value))
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"options bound to a divergence or verifier must be hashable, got {type(value).__name__}; "
            "pass arrays (such as a skew per sequence) when calling the objective"
        ) from None
    # 1, 1.0 and True are equal to Python, but not to a function that checks its options' types.
    return (type(value), value)
