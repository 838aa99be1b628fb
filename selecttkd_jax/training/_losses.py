"""Losses of the training step: objectives on a pair of models, and the cross-entropy of one alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from selecttkd_jax._array_types import Array, Key, Params, Scalar
from selecttkd_jax.data import Batch, Responses
from selecttkd_jax.distill import (
    HiddenStream,
    LossSums,
    Objective,
    Schedules,
    Tokens,
    TwoStreamObjective,
    TwoStreamSums,
    fused_head,
    fused_two_stream,
)
from selecttkd_jax.losses import cross_entropy
from selecttkd_jax.selection import accept_all
from selecttkd_jax.training._diagnosis import find_broken_logits
from selecttkd_jax.training._draws import draw_uniforms
from selecttkd_jax.training._pair import Frozen, Pair


@dataclass(frozen=True)
class OneStream:
    """An objective on one stream of responses. Logits exist for a chunk of positions at a time (`distill.fused_head`).

    Attributes:
        pair: Architectures, shared vocabulary and compute dtype.
        objective: Divergence, verifier, floor, temperature and normaliser.
        expected: Weighs by the verifier's acceptance itself instead of a draw against it.
        memory_budget: Bytes for a chunk's logits and their gradient; None leaves the choice to `fused_head`.
        skip_rejected: Whether rejected positions stay out of the head's gradient products; for a floor of 0.
        packed: Whether each segment of a row is a sequence, or the row is.
        schedules: What of the objective moves over the steps.
    """

    pair: Pair
    objective: Objective
    expected: bool = False
    memory_budget: int | None = None
    skip_rejected: bool = False
    packed: bool = False
    schedules: Schedules = Schedules()

    def draw(self, key: Key, batch: Batch) -> Array | None:
        """The draws from [0, 1) that acceptances are compared with, `[B, T]`; None where none are."""
        return None if self.expected else draw_uniforms(key, batch)

    def explain(self, frozen: Frozen, batch: Batch) -> str:
        """Whether it is the teacher's logits that are broken; the student's weights are, by then, too."""
        return find_broken_logits(self.pair, None, frozen, batch)

    def __call__(self, params: Params, frozen: Frozen, batch: Batch, draws: Array | None, step: Scalar) -> LossSums:
        """The objective's sums over the rows of a `data.Batch`."""
        return self.sums_with(params, frozen, batch, step, draws)

    def sums_with(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        step: Scalar,
        draws: Array | None,
        acceptance: Array | None = None,
    ) -> LossSums:
        """The same with these draws, and with these acceptances in place of the verifier's, `[B, T]` each or None."""
        student_params = self.pair.student_params(params, frozen.base)
        student_hidden, teacher_hidden = self.pair.hidden(student_params, frozen.teacher, batch)
        student_head, teacher_head = self.pair.heads(student_params, frozen.teacher)
        return fused_head(
            self.objective,
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            Tokens(
                batch.loss_mask,
                uniforms=draws,
                labels=batch.labels,
                acceptance=acceptance,
                segment_ids=batch.segment_ids if self.packed else None,
                **self.schedules.at(step),
            ),
            vocab_size=self.pair.vocab_size,
            memory_budget=self.memory_budget,
            skip_rejected=self.skip_rejected,
        )


@dataclass(frozen=True)
class TwoStreams:
    """An objective on the teacher's responses and another on the student's, to the same prompts.

    Attributes:
        pair: Architectures, shared vocabulary and compute dtype.
        objective: One objective a stream.
        balance: The student stream's share at a step, a function of the finished steps; 1/2 adds both up.
        expected: As in `OneStream`.
        memory_budget: As in `OneStream`.
        skip_rejected: As in `OneStream`.
        packed: As in `OneStream`.
        schedules: As in `OneStream`, of both objectives.
    """

    pair: Pair
    objective: TwoStreamObjective
    balance: Callable[[Scalar], Scalar | float]
    expected: bool = False
    memory_budget: int | None = None
    skip_rejected: bool = False
    packed: bool = False
    schedules: Schedules = Schedules()

    def explain(self, frozen: Frozen, batch: Responses) -> str:
        """Whether it is the teacher's logits that are broken, on either stream."""
        on_teacher = find_broken_logits(self.pair, None, frozen, batch.teacher)
        return on_teacher or find_broken_logits(self.pair, None, frozen, batch.student)

    def draw(self, key: Key, batch: Responses) -> tuple[Array, Array] | None:
        """The draws of both streams, `[B, T]` each, or None."""
        if self.expected:
            return None
        teacher_key, student_key = jax.random.split(key)
        return draw_uniforms(teacher_key, batch.teacher), draw_uniforms(student_key, batch.student)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Responses, draws: tuple[Array, Array] | None, step: Scalar
    ) -> TwoStreamSums:
        """The objective's sums over the pairs of a `data.Responses`."""
        student_params = self.pair.student_params(params, frozen.base)
        student_head, teacher_head = self.pair.heads(student_params, frozen.teacher)
        assert teacher_head is not None, "two streams need a teacher"

        def stream(rows: Batch, uniforms: Array | None, alpha: Array | None) -> HiddenStream:
            student_hidden, teacher_hidden = self.pair.hidden(student_params, frozen.teacher, rows)
            assert teacher_hidden is not None
            segments = rows.segment_ids if self.packed else None
            tokens = Tokens(
                rows.loss_mask, uniforms, rows.labels, alpha, segment_ids=segments, **self.schedules.at(step)
            )
            return HiddenStream(student_hidden, teacher_hidden, tokens)

        on_teacher, on_student = (None, None) if draws is None else draws
        return fused_two_stream(
            self.objective,
            stream(batch.teacher, on_teacher, batch.teacher_alpha),
            stream(batch.student, on_student, batch.student_alpha),
            student_head,
            teacher_head,
            balance=self.balance(step),
            vocab_size=self.pair.vocab_size,
            memory_budget=self.memory_budget,
            skip_rejected=self.skip_rejected,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LabelSums:
    """Sums of a cross-entropy on labels: those of an objective, without what selection would add."""

    loss: Scalar
    count: Scalar
    cross_entropy: Scalar
    tokens: Scalar

    def means(self) -> dict[str, float]:
        """`cross_entropy` (nats per response token), `loss` (what was minimised) and `tokens`."""
        tokens, count = float(self.tokens), float(self.count)
        return {
            "cross_entropy": float(self.cross_entropy) / tokens if tokens else 0.0,
            "loss": float(self.loss) / count if count else 0.0,
            "tokens": tokens,
        }


@dataclass(frozen=True)
class LabelCrossEntropy:
    """The student's cross-entropy on the responses themselves; no teacher takes part.

    Attributes:
        pair: The student's architecture, vocabulary and compute dtype; its teacher is not looked at.
        normalizer: As in `distill.Objective`.
        memory_budget: As in `OneStream`.
        packed: As in `OneStream`.
    """

    pair: Pair
    normalizer: str = "sequence"
    memory_budget: int | None = None
    packed: bool = False

    def draw(self, key: Key, batch: Batch) -> None:
        """Nothing is drawn."""
        del key, batch

    def __call__(self, params: Params, frozen: Frozen, batch: Batch, draws: None, step: Scalar) -> LabelSums:
        """Sums over the rows of a `data.Batch`."""
        objective = Objective(divergence=cross_entropy, verifier=accept_all, floor=1.0, normalizer=self.normalizer)
        alone = replace(self.pair, teacher=None)
        on_labels = OneStream(
            pair=alone, objective=objective, expected=True, memory_budget=self.memory_budget, packed=self.packed
        )
        sums = on_labels(params, frozen, batch, draws, step)
        return LabelSums(loss=sums.loss, count=sums.count, cross_entropy=sums.divergence, tokens=sums.tokens)
