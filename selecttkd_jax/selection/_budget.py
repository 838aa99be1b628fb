"""A budget: of all tokens of a batch, those with the highest scores are learned from."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from selecttkd_jax import losses
from selecttkd_jax._array_types import Array, PerToken, TokenMask
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.selection._ranking import at_most, top_fraction
from selecttkd_jax.selection._scores import (
    entropy_gap,
    error_norm,
    label_uncertainty,
    student_entropy,
    teacher_entropy,
)
from selecttkd_jax.selection._verifiers import hellinger

SCORES: dict[str, Callable | None] = {
    "student_entropy": student_entropy,
    "teacher_entropy": teacher_entropy,
    "entropy_gap": entropy_gap,
    "error_norm": error_norm,
    "label_uncertainty": label_uncertainty,
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "hellinger": hellinger,
    "random": None,
}
"""Of logits and labels, in the form of a verifier; None: drawn."""
COUNTINGS = ("nearest", "floor", "quantile")


@dataclass(frozen=True)
class Budget:
    """Which positions of a batch are kept, by their scores; hashable.

    Attributes:
        score: `f(student_logits, teacher_logits) -> [...]`; a parameter named `labels` receives the labels. None:
            random.
        fraction: The share of the valid positions that is kept; None where a threshold decides.
        threshold: The least score that is kept, or under `keep_lowest` the largest; None where a fraction decides.
        keep_lowest: Whether the lowest scores are kept, as ENT does.
        per_sequence: Whether each row keeps its own share; otherwise the batch is ranked as a whole.
        counting: See `top_fraction`.
        after_step: Finished steps before which everything is kept.
    """

    score: Callable | None
    fraction: float | None = None
    threshold: float | None = None
    keep_lowest: bool = False
    per_sequence: bool = False
    counting: str = "nearest"
    after_step: int = 0

    def keep(self, scores: PerToken, mask: TokenMask, step: int | Array = 0) -> TokenMask:
        """The valid positions that are kept at a step, [B, T] bool."""
        scores = scores if self.keep_lowest else -scores
        if self.threshold is not None:
            kept = at_most(scores, mask, self.threshold if self.keep_lowest else -self.threshold)
        else:
            assert self.fraction is not None
            kept = top_fraction(-scores, mask, self.fraction, per_sequence=self.per_sequence, counting=self.counting)
        return mask & (kept | (jnp.asarray(step) < self.after_step))


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """A budget of tokens: every step ranks those of its whole batch; the ones that are not kept count as rejected."""

    score: str
    """What is ranked: student_entropy, teacher_entropy, entropy_gap (student minus teacher), error_norm (of the
    student's distribution to the label), label_uncertainty (the teacher's), forward_kl, reverse_kl, hellinger, or
    random."""
    fraction: float | None = None
    """The share of the batch's response tokens that is kept, in [0, 1]."""
    threshold: float | None = None
    """In place of a fraction: the least score that is kept, or the largest where the lowest are."""
    keep: str = "highest"
    """Which scores are kept: highest or lowest."""
    per_sequence: bool = False
    """Whether each response keeps its own share; otherwise the batch is ranked as a whole."""
    counting: str = "nearest"
    """How many a fraction of n tokens is: nearest (rounded), floor (rounded down) or quantile (as many as reach it)."""
    after_step: int = 0
    """Steps before which every token is kept."""

    def __post_init__(self) -> None:
        check_one_of("selection.score", self.score, SCORES)
        check_one_of("selection.keep", self.keep, ("highest", "lowest"))
        check_one_of("selection.counting", self.counting, COUNTINGS)
        check_at_least("selection.after_step", self.after_step, 0)
        if (self.fraction is None) == (self.threshold is None):
            raise InputError("[selection] needs either selection.fraction or selection.threshold")
        if self.fraction is not None:
            check_in_range("selection.fraction", self.fraction, 0, 1)
        elif self.per_sequence or self.counting != "nearest":
            raise InputError(
                "selection.per_sequence and selection.counting are of a fraction, and here is a threshold; leave them "
                "out"
            )

    @property
    def reads_labels(self) -> bool:
        """Whether the score looks at the labels."""
        score = SCORES[self.score]
        return score is not None and "labels" in inspect.signature(score).parameters

    def build(self) -> Budget:
        """The budget itself."""
        return Budget(
            score=SCORES[self.score],
            fraction=self.fraction,
            threshold=self.threshold,
            keep_lowest=self.keep == "lowest",
            per_sequence=self.per_sequence,
            counting=self.counting,
            after_step=self.after_step,
        )
