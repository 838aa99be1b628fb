"""One stream of which something is found out before any of it is learned from: a rate, or a ranking."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Key, Params, Scalar
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import LossSums, map_logits
from selecttkd_jax.selection import Budget, acceptance_rate
from selecttkd_jax.selection._calling import call_with_labels
from selecttkd_jax.selection._controls import surveyed
from selecttkd_jax.training._draws import draw_uniforms
from selecttkd_jax.training._losses import OneStream
from selecttkd_jax.training._pair import Frozen


class SurveyedStream(OneStream):
    """One stream whose tokens are accepted by chance, at the rate of another verifier over the whole batch.

    The objective's verifier is `selection.at_rate_of(other)`: one sweep without gradient asks the other one about every
    token, then comes the sweep of the objective. With `expected` nothing is drawn, and the loss is that of all tokens
    times the mean weight that the other verifier would give.
    """

    def survey(self, params: Params, frozen: Frozen, batch: Batch, step: Scalar) -> Array:
        """What the other verifier says of each token of a part, `[B, T]`."""
        other = surveyed(self.objective.verifier)
        assert other is not None, "the objective's verifier is at_rate_of another"
        k = self.schedules.at(step).get("k")
        moving = {} if k is None else {"k": jnp.broadcast_to(k, batch.loss_mask.shape)}
        return ask_every_token(self, other, "verifier", params, frozen, batch, **moving)

    def decide(self, found: Array, batch: Batch, draws: Array | None, step: Scalar) -> tuple[Array | None, Array]:
        """The draws, and the mean of what was found as every token's acceptance, `[B, T]` each."""
        del step
        rate = acceptance_rate(found, batch.loss_mask).value
        return draws, jnp.broadcast_to(rate, found.shape)

    def __call__(self, params: Params, frozen: Frozen, batch: Batch, draws: Any, step: Scalar) -> LossSums:
        """The objective's sums over the rows of a `data.Batch`."""
        return self.sums_with(params, frozen, batch, step, *draws)


@dataclass(frozen=True)
class RankedStream(OneStream):
    """One stream of which a budget of tokens is kept, by their scores over the whole batch.

    One sweep without gradient scores every token, then comes the sweep of the objective, in which those that are kept
    are the accepted ones; its own verifier is not asked.

    Attributes:
        budget: What is ranked, and how much of it is kept.
    """

    budget: Budget = Budget(None, fraction=1.0)

    def draw(self, key: Key, batch: Batch) -> Array | None:
        """Random scores, `[B, T]`, where the budget asks for them."""
        return draw_uniforms(key, batch) if self.budget.score is None else None

    def survey(self, params: Params, frozen: Frozen, batch: Batch, step: Scalar) -> Array | None:
        """The score of each token of a part, `[B, T]`; None where scores are drawn."""
        del step
        if self.budget.score is None:
            return None
        return ask_every_token(self, self.budget.score, "score", params, frozen, batch)

    def decide(self, found: Array | None, batch: Batch, draws: Array | None, step: Scalar) -> Array:
        """Which tokens are kept, as acceptances `[B, T]`."""
        scores = draws if found is None else found
        assert scores is not None
        return self.budget.keep(scores, batch.loss_mask, step).astype(jnp.float32)

    def __call__(self, params: Params, frozen: Frozen, batch: Batch, draws: Any, step: Scalar) -> LossSums:
        """The objective's sums over the rows of a `data.Batch`."""
        return self.sums_with(params, frozen, batch, step, None, draws)


def ask_every_token(
    stream: OneStream, function: Callable, role: str, params: Params, frozen: Frozen, batch: Batch, **per_token: Array
) -> Array:
    """A function of both models' logits (and labels, if it asks for them) at every response token, `[B, T]`."""

    def ask(student_logits: Array, teacher_logits: Array, labels: Array, **per_token: Array) -> Array:
        return call_with_labels(function, role, student_logits, teacher_logits, labels, **per_token)

    pair = stream.pair
    params, frozen = jax.lax.stop_gradient((params, frozen))
    student_params = pair.student_params(params, frozen.base)
    student_hidden, teacher_hidden = pair.hidden(student_params, frozen.teacher, batch)
    student_head, teacher_head = pair.heads(student_params, frozen.teacher)
    options: dict[str, Any] = {"labels": batch.labels, **per_token}
    return map_logits(
        ask,
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        batch.loss_mask,
        vocab_size=pair.vocab_size,
        memory_budget=stream.memory_budget,
        **options,
    )
