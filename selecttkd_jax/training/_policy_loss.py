"""The loss of a policy gradient on rollouts, and the log-probabilities that rollouts are scored by."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Key, Params, PerToken, Scalar, TokenIds
from selecttkd_jax.data import Batch, Rollouts
from selecttkd_jax.distill import (
    Objective,
    Policy,
    PolicySums,
    Schedules,
    Tokens,
    fused_policy,
    map_logits,
    token_coefficients,
)
from selecttkd_jax.losses import cross_entropy
from selecttkd_jax.training._diagnosis import find_broken_logits
from selecttkd_jax.training._draws import draw_uniforms
from selecttkd_jax.training._pair import Frozen, Pair


@dataclass(frozen=True)
class PolicyGradient:
    """A clipped surrogate on rollouts, and an objective at each of their tokens.

        loss = mean over tokens of the surrogate + the objective

    The first is divided by the batch's response tokens, the second as its normaliser says.

    Attributes:
        pair: Architectures, shared vocabulary and compute dtype.
        objective: The single-step term; its normaliser is "sequence" or "token".
        clip: See `distill.fused_policy`.
        expected: Weighs by the verifier's acceptance itself instead of a draw against it.
        memory_budget: Bytes for a chunk's logits and their gradient; None leaves the choice to the fused head.
        packed: Whether each segment of a row is a sequence, or the row is.
        schedules: What of the objective moves over the steps.
    """

    pair: Pair
    objective: Objective
    clip: float = 0.2
    expected: bool = False
    memory_budget: int | None = None
    packed: bool = False
    schedules: Schedules = Schedules()

    def draw(self, key: Key, batch: Rollouts) -> dict[str, Array | None]:
        """The draws that acceptances are compared with, and what the surrogate counts for by the size of the batch.

        Sums over parts of the batch are divided once, by the objective's count: so the surrogate is multiplied by it
        and divided by its own, which no part knows.
        """
        mask = batch.rows.loss_mask
        tokens = jnp.sum(mask, dtype=jnp.float32)
        # As many as there are sequences, or tokens, that carry loss.
        count = jnp.sum(token_coefficients(mask, self.objective.normalizer, self._segments(batch.rows)))
        return {
            "uniforms": None if self.expected else draw_uniforms(key, batch.rows),
            "surrogate": jnp.broadcast_to(count / jnp.maximum(tokens, 1.0), mask.shape[:1]),
        }

    def explain(self, frozen: Frozen, batch: Rollouts) -> str:
        """Whether it is the teacher's logits that are broken; the student's weights are, by then, too."""
        return find_broken_logits(self.pair, None, frozen, batch.rows)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Rollouts, draws: dict[str, Array | None], step: Scalar
    ) -> PolicySums:
        """Sums over the rows of a `data.Rollouts`."""
        student_params = self.pair.student_params(params, frozen.base)
        student_head, teacher_head = self.pair.heads(student_params, frozen.teacher)
        share = draws["surrogate"]
        assert teacher_head is not None and share is not None, "a policy gradient needs a teacher"

        student_hidden, teacher_hidden = self.pair.hidden(student_params, frozen.teacher, batch.rows)
        assert teacher_hidden is not None
        mask = batch.rows.loss_mask
        return fused_policy(
            self.objective,
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            Tokens(
                mask,
                uniforms=draws["uniforms"],
                labels=batch.rows.labels,
                segment_ids=self._segments(batch.rows),
                **self.schedules.at(step),
            ),
            Policy(
                old_log_prob=batch.old_log_prob,
                importance=batch.importance,
                advantage=batch.advantage,
                share=jnp.broadcast_to(share[:, None], mask.shape),
            ),
            clip=self.clip,
            vocab_size=self.pair.vocab_size,
            memory_budget=self.memory_budget,
        )

    def _segments(self, rows: Batch) -> TokenIds | None:
        return rows.segment_ids if self.packed else None


@partial(jax.jit, static_argnames=("pair", "memory_budget"))
def score_labels(
    pair: Pair, trained: Params, frozen: Frozen, batch: Batch, *, memory_budget: int | None = None
) -> tuple[PerToken, PerToken]:
    """Computes log q(label) and log p(label) of every response token as losses do, `[B, T]` each, 0 elsewhere.

    Args:
        pair: Both architectures.
        trained: What is trained.
        frozen: The teacher, and what `trained` are adapters of.
        batch: Rows `[B, T]`, placed.
        memory_budget: Bytes for a chunk's logits.
    """

    def score(student_logits: Array, teacher_logits: Array, labels: Array) -> tuple[Array, Array]:
        return -cross_entropy(student_logits, labels), -cross_entropy(teacher_logits, labels)

    params = pair.student_params(trained, frozen.base)
    student_hidden, teacher_hidden = pair.hidden(params, frozen.teacher, batch)
    student_head, teacher_head = pair.heads(params, frozen.teacher)
    return map_logits(
        score,
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        batch.loss_mask,
        vocab_size=pair.vocab_size,
        memory_budget=memory_budget,
        labels=batch.labels,
    )
