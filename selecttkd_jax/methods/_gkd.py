"""Generalised knowledge distillation: on what the student writes, on what is stored, or on a mixture."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.sources import Role
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class Gkd:
    """Distillation on batches of which a share is the student's own text.

        with probability lambda:  y ~ q(. | x),   otherwise the stored y
        loss = V D(p, q) at each token of y

    D is the generalised Jensen-Shannon divergence with m = beta p + (1 - beta) q, or any that [objective] names; no
    gradient passes through the sampling.

    Source: Agarwal et al., 2024, "On-Policy Distillation of Language Models"; defaults of TRL's GKDTrainer (lambda 0.5,
    beta 0.5, temperature 0.9, 128 new tokens).
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "jensen_shannon"
    writes: ClassVar[tuple[Role, ...]] = ("student",)

    name: Literal["gkd"] = "gkd"
    """Distillation on a mixture of stored and the student's own responses."""
    student_share: float = 0.5
    """The probability lambda, in [0, 1], with which the student writes a step's responses."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.9, max_new_tokens=128))
    """How the student writes."""
    rollout_steps: int = 1
    """Steps whose responses are written at once, so that the weights which wrote the last are n - 1 steps old."""

    def __post_init__(self) -> None:
        check_at_least("method.rollout_steps", self.rollout_steps, 1)
        if not 0 <= self.student_share <= 1:
            raise InputError(f"method.student_share must be in [0, 1], got {self.student_share}")

    @property
    def reads(self) -> tuple[ResponseName, ...]:
        """Stored responses, unless the student writes every one."""
        return ("response",) if self.student_share < 1 else ()

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """Stored rows, a share of them written anew."""
        warn_of_old_text(parts.objective.divergence or self.divergence, self.rollout_steps - 1)
        source = parts.on_policy("student", self.sampling, self.rollout_steps, lambda step: self.student_share)
        return Method(source=source, loss=parts.one_stream(parts.objective.build(divergence=self.divergence)))
