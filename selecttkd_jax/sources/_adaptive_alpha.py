"""A skew for each of two models' responses, from how likely either model finds them."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax._array_types import Array, Params, PerSequence
from selecttkd_jax.data import Batch, Responses
from selecttkd_jax.distill import ReferenceGap, adaptive_skew, map_logits
from selecttkd_jax.losses import cross_entropy
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.training import Frozen, Pair, Source, TrainState


class AdaptiveAlpha(OfStored):
    """Pairs of responses, with the skew at which each is learned from.

        gap = exp(mean_t log p(y_t)) - exp(mean_t log q(y_t))   on the teacher's responses, minus that on the student's
        alpha = clip(1 - (1 - base) m / (gap + 1e-5), 0.01, base)

    with m the mean gap of each stream over the first `window` steps, at which alpha is `base`. The sums of m are kept
    beside the position of the pairs. A step costs one more pass, without gradient, of both models over both streams.

    Args:
        pairs: Gives `data.Responses`.
        pair: Both architectures.
        frozen: The teacher, and what the student's adapters adapt.
        mesh: Over which the rows of a batch are spread.
        base: The skew of a response with the reference gap.
        window: Steps over which m is averaged.
        by_row: Whether each response has the skew of its own gap, as in the release; otherwise a batch has one, of its
            mean gap, as published.
        memory_budget: Bytes for the logits that exist at once.

    Source: Ko et al., 2025, "DistiLLM-2", section 3.3, and its trainer.
    """

    def __init__(
        self,
        pairs: Source,
        pair: Pair,
        frozen: Frozen,
        mesh: Mesh,
        *,
        base: float,
        window: int,
        by_row: bool,
        memory_budget: int | None = None,
    ):
        super().__init__(pairs)
        self._measure = partial(_measure_gap, pair, memory_budget, frozen)
        self._mesh = mesh
        self._base = base
        self._window = window
        self._by_row = by_row
        self._references = [ReferenceGap.start(), ReferenceGap.start()]
        self._rows = pairs.shapes.teacher.input_ids.shape[0]
        skews = jax.ShapeDtypeStruct((self._rows,), np.float32)
        self.shapes = replace(pairs.shapes, teacher_alpha=skews, student_alpha=skews)

    def next(self, state: TrainState) -> Responses:
        """The next pairs with their skews."""
        batch = self._stored.next(state)
        placed = place_batch(self._mesh, batch, self._rows)
        on_teacher = gather_to_host(self._measure(state.params, placed.teacher))
        on_student = -gather_to_host(self._measure(state.params, placed.student))
        part, parts = process_share(self._mesh, self._rows)
        own = slice(part * self._rows // parts, (part + 1) * self._rows // parts)
        step = int(state.step)
        skews = [self._skew(stream, step, gap)[own] for stream, gap in enumerate((on_teacher, on_student))]
        return replace(batch, teacher_alpha=skews[0], student_alpha=skews[1])

    def get_state(self) -> dict[str, Any]:
        """The position of the pairs, and the sum and number of what m is the mean of, for each stream."""
        gaps = [[float(reference.total), float(reference.batches)] for reference in self._references]
        return {"pairs": super().get_state(), "gaps": gaps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        super().set_state(state["pairs"])
        self._references = [ReferenceGap(jnp.float32(total), jnp.float32(number)) for total, number in state["gaps"]]

    def _skew(self, stream: int, step: int, gap: np.ndarray) -> np.ndarray:
        """The skew of each row of a stream; within the window the gaps are only taken in."""
        if step < self._window:
            self._references[stream] = self._references[stream].update(jnp.asarray(gap), window=self._window)
            return np.full(gap.shape, self._base, np.float32)
        gap = gap if self._by_row else np.full(gap.shape, gap.mean(), np.float32)
        low = min(0.01, self._base)
        skew = adaptive_skew(
            jnp.asarray(gap), self._references[stream].value, base=self._base, low=low, high=self._base
        )
        return np.asarray(skew)


@partial(jax.jit, static_argnums=(0, 1))
def _measure_gap(pair: Pair, memory_budget: int | None, frozen: Frozen, trained: Params, batch: Batch) -> PerSequence:
    """`distill.confidence_gap` from hidden states."""
    student_params = pair.student_params(trained, frozen.base)
    student_hidden, teacher_hidden = pair.hidden(student_params, frozen.teacher, batch)
    student_head, teacher_head = pair.heads(student_params, frozen.teacher)

    def surprise(student_logits: Array, teacher_logits: Array, labels: Array) -> tuple[Array, Array]:
        return cross_entropy(student_logits, labels), cross_entropy(teacher_logits, labels)

    surprises = map_logits(
        surprise,
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        batch.loss_mask,
        vocab_size=pair.vocab_size,
        memory_budget=memory_budget,
        labels=batch.labels,
    )
    length = jnp.maximum(jnp.sum(batch.loss_mask.astype(jnp.float32), axis=-1), 1.0)
    of_student, of_teacher = (jnp.exp(-jnp.sum(values, axis=-1) / length) for values in surprises)
    return of_teacher - of_student
