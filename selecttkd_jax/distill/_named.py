"""Objectives by name, for configuration files and the command line."""

from collections.abc import Callable
from dataclasses import dataclass

from selecttkd_jax import losses
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.distill._binding import bind_named
from selecttkd_jax.distill._inputs import check_floor
from selecttkd_jax.distill._named_verifiers import (
    DEFAULT_K,
    TAKES_K,
    build_verifiers,
    check_verifier_options,
    find_label_readers,
)
from selecttkd_jax.distill._objective import Objective
from selecttkd_jax.distill._schedules import SCHEDULES, Schedule, Schedules
from selecttkd_jax.distill._sums import NORMALIZERS
from selecttkd_jax.selection._controls import surveyed

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
        losses.teacher_top_k_kl,
        losses.teacher_top_k_reverse_kl,
    )
}
# An option of [objective] and the parameter of a function that it sets.
DIVERGENCE_OPTIONS = {"alpha": "alpha", "beta": "beta", "mu": "mu", "top_k": "k"}
REJECTED_OPTIONS = {f"rejected_{option}": parameter for option, parameter in DIVERGENCE_OPTIONS.items()}


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised, and which tokens count."""

    divergence: str | None = None
    """forward_kl, reverse_kl, skew_kl, skew_reverse_kl, jensen_shannon, adaptive_kl, total_variation, hellinger,
    teacher_top_k_kl or teacher_top_k_reverse_kl. Left out: the method's own."""
    alpha: float | None = None
    """Share of the other model in the mixture of skew_kl and skew_reverse_kl, in [0, 1). Left out: 0.1."""
    beta: float | None = None
    """Mixture m = beta p + (1 - beta) q of jensen_shannon (p the teacher), strictly between 0 and 1. Left
    out: 0.5."""
    mu: float | None = None
    """Teacher mass that adaptive_kl calls the head, in [0, 1]. Left out: 0.5."""
    top_k: int | None = None
    """Teacher tokens that teacher_top_k_kl and teacher_top_k_reverse_kl tell apart, at least 1; all others count as
    one. Left out: 16."""
    rejected: str | None = None
    """The divergence of rejected tokens, which the floor multiplies: one of those above, or several added up, such as
    "reverse_kl + forward_kl". Left out: that of accepted ones."""
    rejected_alpha: float | None = None
    """As alpha, of rejected."""
    rejected_beta: float | None = None
    """As beta, of rejected."""
    rejected_mu: float | None = None
    """As mu, of rejected."""
    rejected_top_k: int | None = None
    """As top_k, of rejected."""
    verifier: str = "greedy_top_k"
    """greedy_top_k, spec_k, spec_label (the token of the text passes the speculative test), nucleus (the teacher's mass
    on what is likelier is below tau), hellinger_gate (up to tau), hellinger (the soft weight) or accept_all (vanilla
    distillation); or a control: random, entropy (up to threshold), label_in_top_k, invert (what of rejects), rescale
    (all tokens, scaled to the mean weight that of gives)."""
    of: str | None = None
    """The verifier that invert, random (which then accepts at its rate) or rescale is made of."""
    shadows: tuple[str, ...] | None = None
    """Verifiers that see the same tokens and change nothing: the log says what they accept, and how that overlaps with
    what the verifier does. A random one without a rate has the verifier's."""
    k: int | None = None
    """Teacher tokens that greedy_top_k and label_in_top_k accept, or candidates that spec_k draws; at least 1. Left
    out: 5."""
    threshold: float | None = None
    """Nats of entropy up to which the verifier entropy accepts."""
    entropy_of: str | None = None
    """Whose entropy that is: teacher or student. Left out: the teacher's."""
    tau: float | None = None
    """Hellinger distance up to which hellinger_gate accepts, in [0, 1]; left out: 0.5. Teacher mass below which nucleus
    does, in (0, 1]; left out: 0.9."""
    rate: float | None = None
    """Probability with which random accepts, in [0, 1]."""
    expected: bool = False
    """Weigh by the acceptance itself (its expectation) instead of a draw against it: less variance for spec_k."""
    floor: float = 0.01
    """Weight of a rejected token, in [0, 1] (the paper's beta); an accepted one weighs 1. With rejected,
    the coefficient of that divergence, which may exceed 1."""
    skip_rejected: bool = False
    """Leave rejected tokens out of the head's gradient products: the same numbers sooner. Needs a floor of 0."""
    temperature: float = 1.0
    """Divides both models' logits in the divergence; verification stays at 1."""
    schedule: str | None = None
    """How the numbers with an end move from the first step to the last: constant (not at all), linear or cosine."""
    floor_end: float | None = None
    """The floor at the last step. Left out: floor throughout."""
    k_end: int | None = None
    """The verifier's k at the last step, rounded on the way. Left out: k throughout."""
    temperature_end: float | None = None
    """The temperature at the last step. Left out: temperature throughout."""
    normalizer: str = "sequence"
    """sequence (mean over sequences of each one's token mean), token (all tokens pooled) or weight (sum of weights)."""

    def __post_init__(self) -> None:
        self._check_options_of("divergence", "")
        self._check_options_of("rejected", "rejected_")
        check_verifier_options(self)
        check_floor("objective.floor", self.floor, coefficient=self.rejected is not None)
        if self.rejected is None:
            for option in REJECTED_OPTIONS:
                if getattr(self, option) is not None:
                    raise InputError(f"objective.{option} is an option of objective.rejected, which is not given")
        elif self.floor == 0 and not self.floor_end:
            raise InputError(
                "objective.rejected has a coefficient of 0, objective.floor, and teaches nothing: raise it, or leave "
                "rejected out"
            )
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"objective.temperature must be above 0 and finite, got {self.temperature}")
        check_schedules(self)
        check_one_of("objective.normalizer", self.normalizer, NORMALIZERS)
        if self.skip_rejected and self.floor > 0:
            raise InputError(
                f"objective.skip_rejected needs objective.floor = 0.0, got {self.floor}: with a floor, rejected tokens "
                "learn, too"
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
        (own,) = bind_named(self, "divergence", [self.divergence or divergence], DIVERGENCES, DIVERGENCE_OPTIONS)
        verifier, shadows = build_verifiers(self)
        return Objective(
            divergence=own,
            verifier=verifier,
            floor=self.floor,
            temperature=self.temperature,
            normalizer=self.normalizer,
            label_share=label_share,
            rejected=None if self.rejected is None else self._build_rejected(self.rejected),
            shadows=shadows,
        )

    def build_verifier(self) -> Callable:
        """The objective's verifier alone."""
        return build_verifiers(self)[0]

    def build_schedules(self, steps: int) -> Schedules:
        """How floor, k and temperature move over a run of `steps` steps."""

        def schedule(start: float, end: float | None) -> Schedule | None:
            return None if end is None else Schedule(self.schedule or "constant", start, end, steps)

        return Schedules(
            floor=schedule(self.floor, self.floor_end),
            temperature=schedule(self.temperature, self.temperature_end),
            k=schedule(self.k or DEFAULT_K, self.k_end),
        )

    @property
    def label_readers(self) -> list[str]:
        """The options that name a verifier which looks at the labels, each with the verifier's name."""
        return find_label_readers(self)

    @property
    def expects(self) -> bool:
        """Whether tokens weigh by the acceptance itself, and none is drawn."""
        return self.expected or self.verifier == "rescale"

    def check_by_token(self, method: str) -> None:
        """Raises InputError where the verifier needs a number of the whole batch, which this method does not take."""
        if surveyed(self.build_verifier()) is not None:
            raise InputError(
                f"objective.verifier {self.verifier} takes the rate of {self.of} over each batch first, which method "
                f"{method} does not; choose a method of one stream, or objective.rate"
            )

    def _build_rejected(self, names: str) -> Callable:
        parts = [name.strip() for name in names.split("+")]
        return losses.sum_of(*bind_named(self, "rejected", parts, DIVERGENCES, REJECTED_OPTIONS))

    def _check_options_of(self, kind: str, prefix: str) -> None:
        """Raises InputError where an option of a divergence is out of range."""
        alpha, beta, mu, top_k = (getattr(self, f"{prefix}{option}") for option in DIVERGENCE_OPTIONS)
        if alpha is not None:
            check_in_range(f"objective.{prefix}alpha", alpha, 0, 1, include_high=False)
        if mu is not None:
            check_in_range(f"objective.{prefix}mu", mu, 0, 1)
        if beta is not None and not 0 < beta < 1:
            raise InputError(
                f"objective.{prefix}beta must lie strictly between 0 and 1, got {beta}; where other libraries mean a "
                f'KL divergence by it, set objective.{kind} to "forward_kl" (0) or "reverse_kl" (1)'
            )
        if top_k is not None:
            check_at_least(f"objective.{prefix}top_k", top_k, 1)


def check_schedules(config: ObjectiveConfig) -> None:
    """Raises InputError where the numbers at a run's end are out of range, or do not go with the rest."""
    ends = {name: getattr(config, f"{name}_end") for name in ("floor", "k", "temperature")}
    given = [f"objective.{name}_end" for name, end in ends.items() if end is not None]
    if config.schedule is not None:
        check_one_of("objective.schedule", config.schedule, SCHEDULES)
    if given and config.schedule in (None, "constant"):
        raise InputError(f'{given[0]} needs objective.schedule = "linear" or "cosine"')
    if not given and config.schedule not in (None, "constant"):
        raise InputError(
            f"objective.schedule {config.schedule} leads nowhere: give floor_end, k_end or temperature_end"
        )
    if config.floor_end is not None:
        check_floor("objective.floor_end", config.floor_end, coefficient=config.rejected is not None)
        if config.skip_rejected or config.verifier == "hellinger":
            raise InputError(
                "objective.floor_end goes with neither skip_rejected nor the verifier hellinger, whose floor is 0"
            )
    if config.temperature_end is not None and not 0 < config.temperature_end < float("inf"):
        raise InputError(f"objective.temperature_end must be above 0 and finite, got {config.temperature_end}")
    if config.k_end is not None:
        check_at_least("objective.k_end", config.k_end, 1)
        if config.verifier == "invert" or (config.of or config.verifier) not in TAKES_K:
            raise InputError(
                f"objective.k_end is an option of {', '.join(TAKES_K)}, not of {config.verifier}; leave it out or "
                "choose another objective.verifier"
            )
