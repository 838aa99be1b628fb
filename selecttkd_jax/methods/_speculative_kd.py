"""Speculative knowledge distillation: the student proposes each token, the teacher replaces what it would not say."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._errors import check_at_least
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import KeepTopK, Sampling
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.sources import Role
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class SpeculativeKd:
    """Distillation on text that both models write together.

        y_n ~ q(. | x, y_<n);   where y_n is not among the K most likely of p(. | x, y_<n):   y_n ~ p(. | x, y_<n)
        loss = V D(p, q) at each token of y

    The student proposes `block` tokens, the teacher scores them in one pass, and what follows the first replaced one is
    proposed anew. Early in training the text is nearly the teacher's, later the student's own. The accept rule is that
    of the verifier greedy_top_k with a sampled proposal: here it makes the text, there the weight V of each token.

    Source: Xu et al., 2024, "Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved
    Sampling" (forward KL, K = 25, blocks of 5).
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "forward_kl"
    reads: ClassVar[tuple[ResponseName, ...]] = ()
    writes: ClassVar[tuple[Role, ...]] = ("student", "teacher")

    name: Literal["speculative_kd"] = "speculative_kd"
    """Distillation on the student's text, of which the teacher replaces unlikely tokens."""
    keep_top_k: int = 25
    """K: a proposed token stands where it is among the teacher's K most likely. 1 leaves little of the student's."""
    block: int = 5
    """Tokens that the student proposes at once; changes the time it takes, and no token."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=256))
    """How both models write."""
    rollout_steps: int = 1
    """Steps whose responses are written at once, so that the weights which wrote the last are n - 1 steps old."""

    def __post_init__(self) -> None:
        check_at_least("method.keep_top_k", self.keep_top_k, 1)
        check_at_least("method.block", self.block, 1)
        check_at_least("method.rollout_steps", self.rollout_steps, 1)

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """The prompts of stored rows, answered by both models together."""
        warn_of_old_text(parts.objective.divergence or self.divergence, self.rollout_steps - 1)
        rule = KeepTopK(self.keep_top_k, block=self.block)
        source = parts.on_policy(rule, self.sampling, self.rollout_steps)
        return Method(source=source, loss=parts.one_stream(parts.objective.build(divergence=self.divergence)))
