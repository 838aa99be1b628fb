"""Sequence-level distillation: the teacher's text as if it were the data's."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods._parts import Parts
from selecttkd_jax.methods._sft import check_unused
from selecttkd_jax.sources import Role
from selecttkd_jax.training import LabelCrossEntropy, Method


@dataclass(frozen=True)
class SeqKd:
    """Learning from responses that the teacher writes to the prompts.

        y ~ p(. | x),   loss = -log q(y)   or, with learn_from = "logits",   V D(p, q)   at each token of y

    Where the teacher's text is on disk already, this is `sft` (or `kd`) on it, and sooner.

    Source: Kim and Rush, 2016, "Sequence-Level Knowledge Distillation".
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "forward_kl"
    reads: ClassVar[tuple[ResponseName, ...]] = ()
    writes: ClassVar[tuple[Role, ...]] = ("teacher",)

    name: Literal["seqkd"] = "seqkd"
    """Learning from the teacher's own responses."""
    learn_from: str = "text"
    """text (cross-entropy on the teacher's tokens) or logits (the divergence and verifier of [objective])."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_new_tokens=256))
    """How a model writes. Of seqkd, greedy unless it is given a temperature."""
    rollout_steps: int = 1
    """Steps whose responses are written at once."""

    def __post_init__(self) -> None:
        check_at_least("method.rollout_steps", self.rollout_steps, 1)
        check_one_of("method.learn_from", self.learn_from, ("text", "logits"))

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        if self.learn_from == "text":
            check_unused("seqkd with learn_from = text", shared, divergence=shared.divergence)
            if shared.divergence not in (None, self.divergence):
                raise InputError('objective.divergence needs method.learn_from = "logits"')
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """The prompts of stored rows, answered by the teacher."""
        source = parts.on_policy("teacher", self.sampling, self.rollout_steps)
        if self.learn_from == "text":
            loss = LabelCrossEntropy(
                parts.pair, parts.objective.normalizer, memory_budget=parts.memory_budget, packed=parts.packed
            )
            return Method(source=source, loss=loss)
        return Method(source=source, loss=parts.one_stream(parts.objective.build(divergence=self.divergence)))
