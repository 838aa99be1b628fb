"""Controls: gates that make a claim about a verifier testable.

If a random gate of the same acceptance rate does as well, it was the smaller step and not the choice of tokens.
"""

import inspect
from collections.abc import Callable
from functools import partial

from selecttkd_jax import losses
from selecttkd_jax._array_types import Array, Int, Logits, PerToken
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses._cross_entropy import check_labels
from selecttkd_jax.selection._verifiers import accept_all, check_k, constants, rank, verdict


def random_gate(student_logits: Logits, teacher_logits: Logits, *, rate: float) -> PerToken:
    """Accepts each position with the same probability, whatever the models say.

    Args:
        student_logits: [..., V]. Only the shape matters.
        teacher_logits: [..., V]. Unused.
        rate: Probability of acceptance, in [0, 1]; draw it with the uniforms of `token_weights`.

    Returns:
        Acceptance [...] float32, `rate` everywhere.

    Raises:
        InputError: rate is out of range.
    """
    check_in_range("rate", rate, 0.0, 1.0)
    return rate * accept_all(student_logits, teacher_logits)


def invert(verifier: Callable) -> Callable:
    """A verifier that accepts what `verifier` rejects: acceptance = 1 - verifier's.

    Where acceptance lies between 0 and 1 that holds in probability: with the same uniforms both may accept a position.

    Args:
        verifier: Any verifier, options bound with `functools.partial`.

    Returns:
        A verifier; two inversions of equal verifiers make equal objectives.

    Example:
        >>> from selecttkd_jax import selection
        >>> control = invert(partial(selection.greedy_top_k, k=5))
    """
    takes_labels = "labels" in inspect.signature(verifier).parameters
    return partial(_inverted_with_labels if takes_labels else _inverted, verifier)


def _inverted(verifier, student_logits, teacher_logits):
    return 1.0 - verifier(student_logits, teacher_logits)


def _inverted_with_labels(verifier, student_logits, teacher_logits, labels):
    return 1.0 - verifier(student_logits, teacher_logits, labels=labels)


def at_rate_of(verifier: Callable) -> Callable:
    """A verifier that accepts each position with the same probability, the mean acceptance of `verifier` on its batch.

    That rate is one of the whole batch, which no position knows: it comes as the `acceptance` of the call, and asked by
    itself this verifier raises InputError. The training step surveys `verifier` and hands it over.

    Args:
        verifier: Any verifier, options bound with `functools.partial`.

    Returns:
        A verifier; two of equal verifiers make equal objectives.
    """
    return partial(_at_rate_of, verifier)


def _at_rate_of(verifier, student_logits, teacher_logits):
    raise InputError(
        "the rate of another verifier is a mean over the whole batch: take it first (distill.map_logits and "
        "acceptance_rate) and hand it over as acceptance"
    )


def surveyed(verifier: Callable) -> Callable | None:
    """Of `at_rate_of(other)` the other verifier, whose rate has to be taken first; None of all others."""
    return verifier.args[0] if isinstance(verifier, partial) and verifier.func is _at_rate_of else None


def is_random(verifier: Callable) -> bool:
    """Whether a verifier accepts by chance alone, with no look at the position; what rejects so does."""
    while isinstance(verifier, partial) and verifier.func in (_inverted, _inverted_with_labels):
        verifier = verifier.args[0]
    return getattr(verifier, "func", verifier) in (random_gate, _at_rate_of)


@any_mesh(like="student_logits", drop=1)
def entropy_gate(
    student_logits: Logits, teacher_logits: Logits, *, threshold: float, source: str = "teacher"
) -> PerToken:
    """Accepts a position at which one model's entropy is at most the threshold.

        acceptance = 1 if H(source) <= threshold else 0

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        threshold: In nats, at least 0; more than log V accepts everything.
        source: Whose entropy: "teacher" or "student".

    Returns:
        Acceptance [...] float32, 0 or 1.

    Raises:
        InputError: an option is out of range.
    """
    check_at_least("threshold", threshold, 0.0)
    check_one_of("source", source, ("teacher", "student"))
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    entropy = losses.entropy(teacher_logits if source == "teacher" else student_logits)
    return verdict(entropy <= threshold, entropy)


@any_mesh(like="student_logits", drop=1)
def label_in_top_k(
    student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"], *, k: int | Array = 5
) -> PerToken:
    """Accepts a position whose *label* is among the teacher's k most likely tokens, whatever the student proposes.

        acceptance = 1 if rank_p(label) < k and p(label) > 0 else 0

    with the rank and the ties of `greedy_top_k`.

    Args:
        student_logits: [..., V]. Unused.
        teacher_logits: [..., V], any float dtype.
        labels: [...] integers. Positions whose label is outside [0, V) are rejected.
        k: From 1 to V; or [...] of such.

    Returns:
        Acceptance [...] float32, 0 or 1.

    Raises:
        InputError: The shapes do not match, or k is out of range.
        TypeError: the labels or k not integers.
    """
    _, teacher_logits = constants(student_logits, teacher_logits)
    check_labels(teacher_logits, labels)
    k = check_k(k, teacher_logits.shape[-1])
    place = rank(teacher_logits, labels)
    return verdict(place < k, place)
