"""The loss of a policy gradient on rollouts, and the log-probabilities that rollouts are scored by."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Key, Params, PerToken, Scalar, TokenIds
from selecttkd_jax.data import Batch, Rollouts
from selecttkd_jax.distill import (
    LossSums,
    Objective,
    Policy,
    PolicySums,
    Tokens,
    fused_head,
    fused_policy,
    map_logits,
    token_coefficients,
)
from selecttkd_jax.losses import cross_entropy, soft_cross_entropy
from selecttkd_jax.selection import accept_all
from selecttkd_jax.training._diagnosis import find_broken_logits
from selecttkd_jax.training._draws import draw_uniforms
from selecttkd_jax.training._pair import Frozen, Pair

ON_CORPUS = Objective(
    divergence=soft_cross_entropy, verifier=accept_all, floor=1.0, normalizer="token", label_share=0.5
)
"""What is minimised on stored rows: half cross-entropy on the labels, half on the teacher's distribution."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RolloutSums:
    """Sums over rollouts, and over the stored rows that go along with them."""

    loss: Scalar
    count: Scalar
    policy: PolicySums
    corpus: LossSums | None

    def means(self) -> dict[str, float]:
        """Those of `PolicySums`, with `loss` of everything; `pretraining` is the mean on stored rows."""
        means = self.policy.means()
        means["loss"] = float(self.loss) / float(self.count) if self.count else 0.0
        return means if self.corpus is None else means | {"pretraining": self.corpus.means()["loss"]}


@dataclass(frozen=True)
class PolicyGradient:
    """A clipped surrogate on rollouts, an objective at each of their tokens, and a term on stored rows.

        loss = mean over tokens of the surrogate + the objective + pretraining (CE + soft CE) / 2

    The first is divided by the batch's response tokens, the second as its normaliser says, the third by the stored
    rows' response tokens.

    Attributes:
        pair: Architectures, shared vocabulary and compute dtype.
        objective: The single-step term; its normaliser is "sequence" or "token".
        clip: See `distill.fused_policy`.
        pretraining: What the term on stored rows counts for; 0 where a batch has none.
        expected: Weighs by the verifier's acceptance itself instead of a draw against it.
        memory_budget: Bytes for a chunk's logits and their gradient; None leaves the choice to the fused head.
        packed: Whether each segment of a row is a sequence, or the row is.
    """

    pair: Pair
    objective: Objective
    clip: float = 0.2
    pretraining: float = 0.0
    expected: bool = False
    memory_budget: int | None = None
    packed: bool = False

    def draw(self, key: Key, batch: Rollouts) -> dict[str, Array | None]:
        """The draws that acceptances are compared with, and what the terms count for by the sizes of the whole batch.

        Sums over parts of the batch are divided once, by the objective's count: so the other terms are multiplied by
        it and divided by their own, which no part knows.
        """
        mask = batch.rows.loss_mask
        tokens = jnp.sum(mask, dtype=jnp.float32)
        # As many as there are sequences, or tokens, that carry loss.
        count = jnp.sum(token_coefficients(mask, self.objective.normalizer, self._segments(batch.rows)))

        def share(tokens: Array) -> Array:
            return jnp.broadcast_to(count / jnp.maximum(tokens, 1.0), mask.shape[:1])

        return {
            "uniforms": None if self.expected else draw_uniforms(key, batch.rows),
            "surrogate": share(tokens),
            "corpus": None if batch.corpus is None else share(jnp.sum(batch.corpus.loss_mask, dtype=jnp.float32)),
        }

    def explain(self, frozen: Frozen, batch: Rollouts) -> str:
        """Whether it is the teacher's logits that are broken; the student's weights are, by then, too."""
        return find_broken_logits(self.pair, None, frozen, batch.rows)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Rollouts, draws: dict[str, Array | None], step: Scalar
    ) -> RolloutSums:
        """Sums over the rows of a `data.Rollouts`."""
        del step
        student_params = self.pair.student_params(params, frozen.base)
        student_head, teacher_head = self.pair.heads(student_params, frozen.teacher)
        share, corpus_share = draws["surrogate"], draws["corpus"]
        assert teacher_head is not None and share is not None, "a policy gradient needs a teacher"
        options = {"vocab_size": self.pair.vocab_size, "memory_budget": self.memory_budget}

        student_hidden, teacher_hidden = self.pair.hidden(student_params, frozen.teacher, batch.rows)
        assert teacher_hidden is not None
        mask = batch.rows.loss_mask
        on_rollouts = fused_policy(
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
            ),
            Policy(
                old_log_prob=batch.old_log_prob,
                importance=batch.importance,
                advantage=batch.advantage,
                share=jnp.broadcast_to(share[:, None], mask.shape),
            ),
            clip=self.clip,
            **options,
        )
        loss, on_corpus = on_rollouts.loss, None
        if batch.corpus is not None:
            assert corpus_share is not None
            student_hidden, teacher_hidden = self.pair.hidden(student_params, frozen.teacher, batch.corpus)
            tokens = Tokens(
                batch.corpus.loss_mask, labels=batch.corpus.labels, segment_ids=self._segments(batch.corpus)
            )
            on_corpus = fused_head(
                ON_CORPUS, student_hidden, student_head, teacher_hidden, teacher_head, tokens, **options
            )
            loss += self.pretraining * corpus_share[0] * on_corpus.loss
        return RolloutSums(loss=loss, count=on_rollouts.count, policy=on_rollouts, corpus=on_corpus)

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
