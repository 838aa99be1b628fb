"""Responses that are on disk."""

from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, BatchIterator, PackedBatches
from selecttkd_jax.training import Describer, Source, TrainState

_NAMED = 8  # rows that a message names


class Stored:
    """Batches of stored rows, in their seeded order, whatever the student does.

    Args:
        batches: From `data.make_batches` or `data.pack_batches`: this process's share of each batch.
        shapes: Of a whole batch, from `data.batch_shapes`.
    """

    def __init__(self, batches: BatchIterator | PackedBatches, shapes: Batch):
        self._batches = batches
        self.shapes = shapes

    def next(self, state: TrainState) -> Batch:
        """The next batch."""
        del state
        return next(self._batches)

    def describe(self, step: int) -> str:
        """The rows of a step's batch, each by its number among those that were kept: `training rows 3, 17 and 4`."""
        rows = [str(row + 1) for row in self._batches.list_rows(step - 1)]
        if len(rows) == 1:
            return f"training row {rows[0]}"
        last = rows[-1] if len(rows) <= _NAMED else f"{len(rows) - _NAMED + 1} more"
        return f"training rows {', '.join(rows[: min(len(rows), _NAMED) - 1])} and {last}"

    def get_state(self) -> dict[str, Any]:
        """The position in the rows."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position; refuses one in other rows, or of another seed or batch size."""
        self._batches.set_state(state)


class OfStored:
    """What sources share that make something of stored batches and need no position but theirs.

    Args:
        stored: Whose prompts are continued.
    """

    def __init__(self, stored: Source):
        self._stored = stored

    def describe(self, step: int) -> str:
        """The rows whose prompts a step takes, where the source they come from can say."""
        return self._stored.describe(step) if isinstance(self._stored, Describer) else "its rows"

    def get_state(self) -> dict[str, Any]:
        """The position in the stored rows."""
        return self._stored.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position."""
        self._stored.set_state(state)


class Unread:
    """Stands in for `Stored` where a step is only compiled: shapes, and no rows.

    Args:
        shapes: Of a whole batch.
    """

    def __init__(self, shapes: Batch):
        self.shapes = shapes

    def next(self, state: TrainState) -> Batch:
        """Refuses."""
        del state
        raise InputError("these rows were never read: a plan compiles a step and takes none")

    def get_state(self) -> dict[str, Any]:
        """No position."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Has none."""
        del state
