"""A language model's loss on a corpus, beside any loss on one stream of rows."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Key, Params, Scalar
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, Rollouts, WithCorpus
from selecttkd_jax.distill import LossSums, Objective, token_coefficients
from selecttkd_jax.losses import cross_entropy, soft_cross_entropy
from selecttkd_jax.selection import accept_all
from selecttkd_jax.training._losses import OneStream
from selecttkd_jax.training._pair import Frozen, Pair
from selecttkd_jax.training._protocols import Explainer, Loss, Sums, Surveyor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PretrainingSums:
    """Sums of a loss, and of the corpus that goes along with it."""

    loss: Scalar
    count: Scalar
    rows: Sums
    corpus: LossSums

    def means(self) -> dict[str, float]:
        """Those of the loss on the rows, with `loss` of everything; `pretraining` is the mean on the corpus."""
        loss = float(self.loss) / float(self.count) if self.count else 0.0
        return self.rows.means() | {"loss": loss, "pretraining": self.corpus.means()["loss"]}


@dataclass(frozen=True)
class WithPretraining:
    """A loss, and a language model's on a corpus; the latter is divided by the corpus's tokens that carry loss.

        loss on the rows + coefficient ((1 - s) soft CE + s CE)

    Attributes:
        rows: The loss on the rows.
        pair: Architectures, shared vocabulary and compute dtype.
        normalizer: That of `rows`: "sequence" or "token"; a sum of weights is not known before a step.
        coefficient: What the corpus counts for.
        label_share: s, in (0, 1]; with 1 the teacher does not read the corpus.
        memory_budget: As in `OneStream`.
        packed: As in `OneStream`.
    """

    rows: Loss
    pair: Pair
    normalizer: str
    coefficient: float
    label_share: float
    memory_budget: int | None = None
    packed: bool = False

    def __post_init__(self) -> None:
        if self.normalizer not in ("sequence", "token"):
            raise InputError(f"normalizer must be sequence or token, got {self.normalizer!r}")

    def draw(self, key: Key, batch: WithCorpus) -> dict[str, Any]:
        """What the loss on the rows draws, and by what the corpus's sum is multiplied.

        Sums over parts of the batch are divided once, by the count of the loss on the rows: so the corpus's is
        multiplied by it and divided by its own, which no part knows.
        """
        rows = batch.rows.rows if isinstance(batch.rows, Rollouts) else batch.rows
        segments = rows.segment_ids if self.packed else None
        # As many as there are sequences, or tokens, that carry loss.
        count = jnp.sum(token_coefficients(rows.loss_mask, self.normalizer, segments))
        tokens = jnp.sum(batch.corpus.loss_mask, dtype=jnp.float32)
        share = jnp.broadcast_to(count / jnp.maximum(tokens, 1.0), rows.loss_mask.shape[:1])
        return {"rows": self.rows.draw(key, batch.rows), "share": share}

    def explain(self, frozen: Frozen, batch: WithCorpus) -> str:
        """What the loss on the rows says of it."""
        return self.rows.explain(frozen, batch.rows) if isinstance(self.rows, Explainer) else ""

    def __call__(
        self, params: Params, frozen: Frozen, batch: WithCorpus, draws: dict[str, Any], step: Scalar
    ) -> PretrainingSums:
        """Sums over the rows and the corpus."""
        on_rows = self.rows(params, frozen, batch.rows, draws["rows"], step)
        on_corpus = self._on_corpus(params, frozen, batch.corpus, step)
        loss = on_rows.loss + self.coefficient * draws["share"][0] * on_corpus.loss
        return PretrainingSums(loss=loss, count=on_rows.count, rows=on_rows, corpus=on_corpus)

    def _on_corpus(self, params: Params, frozen: Frozen, corpus: Batch, step: Scalar) -> LossSums:
        pair, objective = (
            self.pair,
            Objective(
                divergence=soft_cross_entropy,
                verifier=accept_all,
                floor=1.0,
                normalizer="token",
                label_share=self.label_share,
            ),
        )
        if self.label_share == 1:
            pair, objective = replace(pair, teacher=None), replace(objective, divergence=cross_entropy, label_share=0.0)
        stream = OneStream(
            pair=pair, objective=objective, expected=True, memory_budget=self.memory_budget, packed=self.packed
        )
        return stream(params, frozen, corpus, None, step)


class SurveyedWithPretraining(WithPretraining):
    """The same where the loss on the rows looks at the whole batch before any of it is learned from."""

    def survey(self, params: Params, frozen: Frozen, batch: WithCorpus, step: Scalar) -> Any:
        """What the loss on the rows finds out about a part of them."""
        assert isinstance(self.rows, Surveyor)
        return self.rows.survey(params, frozen, batch.rows, step)

    def decide(self, found: Any, batch: WithCorpus, draws: dict[str, Any], step: Scalar) -> dict[str, Any]:
        """The draws, of which those of the loss on the rows are what it makes of them."""
        assert isinstance(self.rows, Surveyor)
        return draws | {"rows": self.rows.decide(found, batch.rows, draws["rows"], step)}
