"""MiniLLM: the reverse KL divergence of whole responses, lowered by a policy gradient on rollouts."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import KeepShare, Sampling
from selecttkd_jax.methods._parts import Parts, check_pretraining, warn_of_old_text
from selecttkd_jax.sources import Rewards, Role, RolloutBuffer, Scorer
from selecttkd_jax.training import Method, PolicyGradient


@dataclass(frozen=True)
class MiniLlm:
    """A clipped policy gradient on text from a mixture of both models, with the single-step divergence beside it.

        y_t ~ m = (1 - a) q_old + a p,   w_t = q_old(y_t) / m(y_t),   rho_t = w_t q(y_t) / q_old(y_t)
        loss = mean_t max(-A_t rho_t, -A_t clip(rho_t, 1 - c, 1 + c)) + V D(p, q) at each token + b (CE + soft CE) / 2

    with the advantage A of `sources.Rewards`: discounted sums of log p - log q, divided by the length that remains and
    whitened over a round. D is the reverse KL divergence unless [objective] names another, and its verifier weighs it
    alone. A round of `rollouts` is written at once and passed over `passes` times; its old probabilities are computed
    as the loss computes new ones, so in the first step of a round rho = w. The student should come from `sft`.

    Source: Gu et al., 2024, "MiniLLM: Knowledge Distillation of Large Language Models", and microsoft/LMOps, minillm/
    (a 0.2, discount 0.95, clip 0.2, 256 rollouts, 4 passes, b 1 on a pre-training corpus).
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "reverse_kl"
    writes: ClassVar[tuple[Role, ...]] = ("student", "teacher")

    name: Literal["minillm"] = "minillm"
    """A policy gradient on text from a mixture of both models."""
    teacher_share: float = 0.2
    """The share a of the teacher in the mixture that tokens are drawn from, in [0, 1)."""
    discount: float = 0.95
    """By which a reward counts less for each token before it, in [0, 1]."""
    clip: float = 0.2
    """Beyond 1 - c and 1 + c a ratio of probabilities is not pushed further."""
    rollouts: int = 256
    """Responses of a round, rounded to whole batches."""
    passes: int = 4
    """How often a round is learned from before the next one is written."""
    pretraining: float = 0.0
    """What half cross-entropy, half soft cross-entropy on the corpus counts for (b); 0 leaves it out."""
    corpus: str | None = None
    """Rows of {"text"} that are pre-trained on: a file or data set. Left out: the data's own responses."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=256))
    """How both models write. Of minillm, the whole distribution at temperature 1, which its weights are for."""

    def __post_init__(self) -> None:
        check_in_range("method.teacher_share", self.teacher_share, 0, 1, include_high=False)
        check_in_range("method.discount", self.discount, 0, 1)
        check_in_range("method.clip", self.clip, 0, 1)
        check_at_least("method.rollouts", self.rollouts, 1)
        check_at_least("method.passes", self.passes, 1)
        check_pretraining(self.pretraining, self.corpus)
        if self.sampling != Sampling(max_new_tokens=self.sampling.max_new_tokens):
            raise InputError(
                "minillm weighs each token by its probability at temperature 1: leave out method.sampling but for "
                "max_new_tokens"
            )

    @property
    def reads(self) -> tuple[ResponseName, ...]:
        """Stored responses, where they are pre-trained on."""
        return ("response",) if self.pretraining > 0 and self.corpus is None else ()

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        shared.check_by_token("minillm")
        if shared.normalizer == "weight":
            raise InputError(
                "no verifier weighs minillm's policy gradient, so objective.normalizer cannot be weight; choose "
                '"sequence" or "token"'
            )
        if shared.skip_rejected:
            raise InputError("rejected tokens learn by minillm's policy gradient: leave out objective.skip_rejected")
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """The prompts of stored rows, answered by the mixture, a round at a time."""
        round_steps = max(1, round(self.rollouts / parts.stored.shapes.input_ids.shape[0]))
        warn_of_old_text(parts.objective.divergence or self.divergence, self.passes * round_steps - 1)
        source = RolloutBuffer(
            parts.on_policy(KeepShare(self.teacher_share), self.sampling, round_steps),
            Scorer(parts.mesh, parts.pair, parts.frozen, parts.memory_budget),
            Rewards(self.teacher_share, self.discount),
            parts.mesh,
            round_steps=round_steps,
            passes=self.passes,
        )
        loss = PolicyGradient(
            pair=parts.pair,
            objective=parts.objective.build(divergence=self.divergence),
            clip=self.clip,
            expected=parts.objective.expects,
            memory_budget=parts.memory_budget,
            packed=parts.packed,
            schedules=parts.objective.build_schedules(parts.steps),
        )
        return parts.with_pretraining(Method(source=source, loss=loss), self.pretraining, label_share=0.5)
