"""On-policy distillation: the student learns from nothing but its own text."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._errors import check_at_least
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.sources import Role
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class OnPolicyKd:
    """Distillation on the student's own responses to the prompts; stored responses are not looked at.

        y ~ q(. | x),   loss = V D(p, q) at each token of y

    D is the reverse KL divergence unless [objective] names another.

    Source: Gu et al., 2024, "MiniLLM", whose single-step term this is; Lu et al., 2025, "On-Policy Distillation"; TRL's
    DistillationTrainer.
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "reverse_kl"
    reads: ClassVar[tuple[ResponseName, ...]] = ()
    writes: ClassVar[tuple[Role, ...]] = ("student",)

    name: Literal["on_policy"] = "on_policy"
    """Distillation on the student's own responses."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=256))
    """How the student writes."""
    rollout_steps: int = 1
    """Steps whose responses are written at once, so that the weights which wrote the last are n - 1 steps old."""

    def __post_init__(self) -> None:
        check_at_least("method.rollout_steps", self.rollout_steps, 1)

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """The prompts of stored rows, answered by the student."""
        warn_of_old_text(parts.objective.divergence or self.divergence, self.rollout_steps - 1)
        source = parts.on_policy("student", self.sampling, self.rollout_steps)
        return Method(source=source, loss=parts.one_stream(parts.objective.build(divergence=self.divergence)))
