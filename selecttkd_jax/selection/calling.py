"""Calling a verifier or divergence with what it asks for."""

import inspect
from collections.abc import Callable

from selecttkd_jax.array_types import Array, Logits, PerToken
from selecttkd_jax.checks import InputError


def call_with_labels(
    function: Callable,
    role: str,
    student_logits: Logits,
    teacher_logits: Logits | None,
    labels: Array | None,
    **options: Array,
) -> PerToken:
    """Calls `function` on the logits, handing over the labels if it has a parameter of that name.

    A function without `teacher_logits` among its parameters, such as `losses.cross_entropy`, gets only the student's.

    Raises:
      InputError: The function needs labels and there are none, or it does not take one of the options.
    """
    parameters = inspect.signature(function).parameters
    name = getattr(getattr(function, "func", function), "__name__", repr(function))
    for option in options:
        if option not in parameters:
            raise InputError(f"the {role} {name} has no option {option!r}, but {option} was given with the batch")
    if "labels" not in parameters:
        return function(student_logits, teacher_logits, **options)
    if labels is None:
        raise InputError(f"the {role} {name} needs labels, got none")
    if "teacher_logits" not in parameters:
        return function(student_logits, labels=labels, **options)
    return function(student_logits, teacher_logits, labels=labels, **options)
