"""Divergences added up, as one."""

from collections.abc import Callable
from functools import partial

from selecttkd_jax._array_types import Logits, PerToken
from selecttkd_jax._errors import InputError


def sum_of(*divergences: Callable[[Logits, Logits], PerToken]) -> Callable[[Logits, Logits], PerToken]:
    """The sum of divergences, each with weight 1: itself a function of student and teacher logits.

    Args:
        *divergences: At least one; options bound with `functools.partial`. None may ask for labels.

    Returns:
        A divergence; two sums of equal ones make equal objectives.

    Example:
        EOPD's divergence of a token that its teacher is unsure of:

        >>> from selecttkd_jax import losses
        >>> uncertain = sum_of(losses.reverse_kl, losses.forward_kl)
    """
    if not divergences:
        raise InputError("a sum of divergences needs at least one, got none")
    total, *others = divergences
    for other in others:
        total = partial(_added, total, other)
    return total


def _added(one, other, student_logits, teacher_logits):
    return one(student_logits, teacher_logits) + other(student_logits, teacher_logits)
