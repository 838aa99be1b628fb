"""Batches whose responses the student wrote a moment ago."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax._array_types import Key
from selecttkd_jax.data import Batch
from selecttkd_jax.sharding import process_share
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.sources._texts import gather_texts, pack_texts, take_share, unpack_texts
from selecttkd_jax.sources._writer import Rewrite, write_together
from selecttkd_jax.training import Source, TrainState, stream_key


class OnPolicy(OfStored):
    """Stored batches, of which a share is written anew before it is learned from.

    The batches of `round_steps` steps are written at once, from the parameters at the first of them: weights are laid
    out for decoding once, and the last batch is learned from `round_steps - 1` steps later. What is drawn comes from
    `state.key` and each batch's own step, so only what is left of a round is kept beside the position.

    Args:
        stored: Whose prompts are continued.
        rewrite: From `Writers`: the live student, or the teacher.
        share: The probability with which text is written at a step, in [0, 1].
        mesh: Over which the rows of a batch are spread.
        by_row: Whether each row is decided on its own; otherwise all rows of a batch are.
        round_steps: Batches that are written at once.
        keep_labels: Whether rows that are written have their own tokens as labels, as stored rows have; otherwise these
            are -1, for a loss that asks the teacher (`losses.hard_cross_entropy`).
    """

    def __init__(
        self,
        stored: Source,
        rewrite: Rewrite,
        share: Callable[[int], float],
        mesh: Mesh,
        *,
        by_row: bool = False,
        round_steps: int = 1,
        keep_labels: bool = True,
    ):
        super().__init__(stored)
        self._rewrite = rewrite
        self._share = share
        self._mesh = mesh
        self._by_row = by_row
        self._round_steps = round_steps
        self._keep_labels = keep_labels
        self._ahead: list[Batch] = []
        self.shapes = stored.shapes
        self._rows = stored.shapes.input_ids.shape[0]

    def next(self, state: TrainState) -> Batch:
        """The next stored batch, with what was drawn for this step written anew."""
        if not self._ahead:
            self._ahead = self._write_round(state)
        batch = self._ahead.pop(0)
        return batch if self._keep_labels else self._hide_labels(batch, self._choose(state.key, int(state.step)))

    def get_state(self) -> dict[str, Any]:
        """The position in the stored rows, and what is left of a round."""
        ahead = [pack_texts(gather_texts(self._mesh, batch, self._rows)) for batch in self._ahead]
        return {"stored": super().get_state(), "ahead": ahead}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        super().set_state(state["stored"])
        length = self.shapes.input_ids.shape[1]
        self._ahead = [take_share(self._mesh, unpack_texts(packed, length)) for packed in state["ahead"]]

    def _write_round(self, state: TrainState) -> list[Batch]:
        steps = range(int(state.step), int(state.step) + self._round_steps)
        batches = [self._stored.next(state) for _ in steps]
        chosen = np.stack([self._choose(state.key, step) for step in steps])
        keys = [stream_key(state.key, "rollouts", step) for step in steps]
        return write_together(self._rewrite, self._mesh, state, batches, chosen, keys)

    def _hide_labels(self, batch: Batch, chosen: np.ndarray) -> Batch:
        part, parts = process_share(self._mesh, self._rows)
        own = chosen[part * self._rows // parts : (part + 1) * self._rows // parts]
        return replace(batch, labels=np.where(own[:, None], np.int32(-1), batch.labels))

    def _choose(self, key: Key, step: int) -> np.ndarray:
        """Which rows of a step's whole batch are written, `[B]`."""
        draws = jax.random.uniform(stream_key(key, "mixture", step), (self._rows if self._by_row else 1,))
        return np.broadcast_to(np.asarray(jax.device_get(draws)) < self._share(step), (self._rows,))
