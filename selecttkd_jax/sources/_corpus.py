"""Batches with rows of a corpus beside them."""

from typing import Any

from selecttkd_jax.data import WithCorpus
from selecttkd_jax.training import Describer, Learner, Source, TrainState


class BesideCorpus:
    """A source's batches, each with the next one of a corpus.

    Args:
        source: Gives the batches.
        corpus: Gives what is pre-trained on; may be the very source whose prompts `source` takes.
    """

    def __init__(self, source: Source, corpus: Source):
        self._source = source
        self._corpus = corpus
        self.shapes = WithCorpus(source.shapes, corpus.shapes)

    def next(self, state: TrainState) -> WithCorpus:
        """The next of both."""
        return WithCorpus(rows=self._source.next(state), corpus=self._corpus.next(state))

    def learn(self, row: dict[str, float]) -> None:
        """Passed on, where the source learns from evaluations."""
        if isinstance(self._source, Learner):
            self._source.learn(row)

    def describe(self, step: int) -> str:
        """The rows of a step, where the source can say."""
        return self._source.describe(step) if isinstance(self._source, Describer) else "its rows"

    def get_state(self) -> dict[str, Any]:
        """The position in both."""
        return {"rows": self._source.get_state(), "corpus": self._corpus.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        self._source.set_state(state["rows"])
        self._corpus.set_state(state["corpus"])
