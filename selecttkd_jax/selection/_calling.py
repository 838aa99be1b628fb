"""Calling a verifier or divergence with what it asks for."""

import inspect
from collections.abc import Callable

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._errors import InputError


def call_with_labels(
    function: Callable,
    role: str,
    student_logits: Logits,
    teacher_logits: Logits | None,
    labels: Array | None,
    **options: Array,
) -> PerToken:
    """Calls `function` on the logits, handing over the labels if it has a parameter of that name.

    A function that asks for one array besides the labels, such as `losses.cross_entropy` or `losses.entropy`, gets the
    student's logits only.

    Raises:
        InputError: The function needs labels and there are none, or it does not take one of the options.
    """
    parameters = inspect.signature(function).parameters
    name = getattr(getattr(function, "func", function), "__name__", repr(function))
    for option in options:
        if option not in parameters:
            raise InputError(f"the {role} {name} has no option {option!r}, but {option} was given with the batch")
    asked_for = [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and (parameter.default is parameter.empty or parameter.name == "teacher_logits")
        and parameter.name != "labels"
    ]
    logits = (student_logits,) if len(asked_for) == 1 else (student_logits, teacher_logits)
    if "labels" in parameters:
        if labels is None:
            raise InputError(f"the {role} {name} needs labels, got none")
        options["labels"] = labels
    return function(*logits, **options)
