"""Objectives by name, for configuration files and the command line."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from selecttkd_jax import losses, selection
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.distill._objective import Objective
from selecttkd_jax.distill._sums import NORMALIZERS

DIVERGENCES: dict[str, Callable] = {
    function.__name__: function
    for function in (
        losses.forward_kl,
        losses.reverse_kl,
        losses.skew_kl,
        losses.skew_reverse_kl,
        losses.jensen_shannon,
        losses.adaptive_kl,
        losses.total_variation,
        losses.hellinger,
    )
}
VERIFIERS: dict[str, Callable] = {
    function.__name__: function
    for function in (selection.accept_all, selection.greedy_top_k, selection.spec_k, selection.hellinger)
}


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised, and which tokens count."""

    divergence: str | None = None
    """forward_kl, reverse_kl, skew_kl, skew_reverse_kl, jensen_shannon, adaptive_kl, total_variation or hellinger. Left
    out: the method's own."""
    alpha: float | None = None
    """Share of the other model in the mixture of skew_kl and skew_reverse_kl, in [0, 1). Left out: 0.1."""
    beta: float | None = None
    """Mixture m = beta p + (1 - beta) q of jensen_shannon (p the teacher), strictly between 0 and 1. Left
    out: 0.5."""
    mu: float | None = None
    """Teacher mass that adaptive_kl calls the head, in [0, 1]. Left out: 0.5."""
    verifier: str = "greedy_top_k"
    """greedy_top_k, spec_k, hellinger (the soft weight), or accept_all (vanilla distillation)."""
    k: int | None = None
    """Teacher tokens that greedy_top_k accepts, or candidates that spec_k draws; at least 1. Left out: 5."""
    expected: bool = False
    """Weigh by the acceptance itself (its expectation) instead of a draw against it: less variance for spec_k."""
    floor: float = 0.01
    """Weight of a rejected token, in [0, 1] (the paper's beta); an accepted one weighs 1."""
    skip_rejected: bool = False
    """Leave rejected tokens out of the head's gradient products: the same numbers sooner. Needs a floor of 0."""
    temperature: float = 1.0
    """Divides both models' logits in the divergence; verification stays at 1."""
    normalizer: str = "sequence"
    """sequence (mean over sequences of each one's token mean), token (all tokens pooled) or weight (sum of weights)."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_in_range("objective.alpha", self.alpha, 0, 1, include_high=False)
        if self.mu is not None:
            check_in_range("objective.mu", self.mu, 0, 1)
        if self.beta is not None and not 0 < self.beta < 1:
            raise InputError(
                f"objective.beta must lie strictly between 0 and 1, got {self.beta}; where other libraries mean a KL "
                'divergence by it, set objective.divergence to "forward_kl" (0) or "reverse_kl" (1)'
            )
        if self.k is not None:
            check_at_least("objective.k", self.k, 1)
        check_in_range("objective.floor", self.floor, 0, 1)
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"objective.temperature must be above 0 and finite, got {self.temperature}")
        check_one_of("objective.normalizer", self.normalizer, NORMALIZERS)
        if self.skip_rejected and self.floor > 0:
            raise InputError(
                f"objective.skip_rejected needs objective.floor = 0.0, got {self.floor}: with a floor, rejected tokens "
                "learn, too"
            )
        if self.verifier == "hellinger" and not (self.expected and self.floor == 0):
            raise InputError(
                "objective.verifier hellinger is itself the weight of a token (V = H): set objective.expected = true "
                "and objective.floor = 0.0"
            )
        # With a divergence left out, the method that names one checks its options.
        if self.divergence is not None:
            self.build()

    def build(self, divergence: str = "forward_kl", label_share: float = 0.0) -> Objective:
        """The objective itself.

        Args:
            divergence: The method's, where this names none.
            label_share: As in `Objective`.

        Raises:
            InputError: An unknown name, a value out of range, or an option that the named function does not have.
        """
        return Objective(
            divergence=_bind(self, "divergence", self.divergence or divergence, DIVERGENCES, ("alpha", "beta", "mu")),
            verifier=_bind(self, "verifier", self.verifier, VERIFIERS, ("k",)),
            floor=self.floor,
            temperature=self.temperature,
            normalizer=self.normalizer,
            label_share=label_share,
        )


def _bind(
    config: ObjectiveConfig, kind: str, name: str, table: dict[str, Callable], options: tuple[str, ...]
) -> Callable:
    """The function called `name`, with those of the options that were given."""
    check_one_of(f"objective.{kind}", name, table)
    function = table[name]
    given = {option: getattr(config, option) for option in options if getattr(config, option) is not None}
    for option in given:
        # Silently ignoring it would train something else than what was asked for.
        if option not in inspect.signature(function).parameters:
            users = [other for other in table if option in inspect.signature(table[other]).parameters]
            raise InputError(
                f"objective.{option} is an option of {', '.join(users)}, not of {name}; leave it out or choose "
                f"another objective.{kind}"
            )
    return partial(function, **given) if given else function
