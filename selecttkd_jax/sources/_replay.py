"""The student's text of a moment ago, and of some time ago."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax.data import Batch
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.sources._texts import Text, gather_texts, pack_texts, take_share, unpack_texts
from selecttkd_jax.sources._writer import Rewrite
from selecttkd_jax.training import Source, TrainState, stream_key


class Replay(OfStored):
    """A mixture of stored text, the student's own, and a buffer of what the student wrote before.

    With u uniform at each of N steps and a threshold phi that grows where the held-out cross-entropy stops falling:

        u < phi (1 - step / N):    the student writes; its text is learned from and goes into the buffer
        u < phi otherwise:         rows from the buffer; while it is not full, the student writes
        else:                      the stored rows

    At an evaluation, a cross-entropy above the last reference + `tolerance` raises phi by 0.1 and becomes the next
    reference. The buffer, phi and the reference are the source's state, so a resumed run draws the same rows.

    Args:
        stored: Whose prompts are continued.
        rewrite: Lets the live student write.
        mesh: Over which the rows of a batch are spread.
        steps: N.
        threshold: phi at the start.
        capacity: Rows in the buffer.
        max_age: Steps after which a row leaves the buffer; None keeps it until newer ones take its place.
        tolerance: By how much the cross-entropy may rise.

    Source: Ko et al., 2024, "DistiLLM", section 3.2, and its code (finetune.py), where phi is None, and the run fails,
    unless the threshold is adaptive.
    """

    def __init__(
        self,
        stored: Source,
        rewrite: Rewrite,
        mesh: Mesh,
        *,
        steps: int,
        threshold: float,
        capacity: int,
        max_age: int | None,
        tolerance: float,
    ):
        super().__init__(stored)
        self._rewrite = rewrite
        self._mesh = mesh
        self._steps = steps
        self._threshold = threshold
        self._reference: float | None = None
        self._capacity = capacity
        self._max_age = max_age
        self._tolerance = tolerance
        self._texts: list[tuple[int, Text]] = []  # each row with its step, the oldest first
        self.shapes = stored.shapes

    def next(self, state: TrainState) -> Batch:
        """Stored rows, new ones or old ones, as drawn for this step."""
        batch = self._stored.next(state)
        step = int(state.step)
        if self._max_age is not None:
            self._texts = [text for text in self._texts if step - text[0] <= self._max_age]
        drawn = float(jax.random.uniform(stream_key(state.key, "mixture", step)))
        if drawn >= self._threshold:
            return batch
        rows = self.shapes.input_ids.shape[0]
        # An age limit may hold less than the capacity.
        full = self._capacity if self._max_age is None else min(self._capacity, self._max_age * rows)
        if drawn < self._threshold * (1 - step / self._steps) or len(self._texts) < max(full, rows):
            batch = self._rewrite(state, batch, np.ones(rows, bool), stream_key(state.key, "rollouts", step))
            self._texts += [(step, text) for text in gather_texts(self._mesh, batch, rows)]
            del self._texts[: max(len(self._texts) - max(self._capacity, rows), 0)]
            return batch
        places = jax.random.choice(stream_key(state.key, "replay", step), len(self._texts), (rows,), replace=False)
        return take_share(self._mesh, [self._texts[int(place)][1] for place in jax.device_get(places)])

    def learn(self, row: dict[str, float]) -> None:
        """Raises the threshold where the held-out cross-entropy stopped falling."""
        loss = row.get("held_out/cross_entropy")
        if loss is None:  # other evaluators have intervals of their own
            return
        if self._reference is None:
            self._reference = loss
        elif loss >= self._reference + self._tolerance:
            self._threshold = min(self._threshold + 0.1, 1.0)
            self._reference = loss

    def get_state(self) -> dict[str, Any]:
        """Position, threshold, reference, and the buffer's text."""
        return {
            "stored": super().get_state(),
            "threshold": self._threshold,
            "reference": self._reference,
            "steps": [step for step, _ in self._texts],
            "texts": pack_texts([text for _, text in self._texts]),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        super().set_state(state["stored"])
        self._threshold, self._reference = state["threshold"], state["reference"]
        texts = unpack_texts(state["texts"], self.shapes.input_ids.shape[1])
        self._texts = list(zip(state["steps"], texts, strict=True))
