"""What is not well with a run: steps that are skipped, spikes, a student that diverges."""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import jax
import numpy as np

from selecttkd_jax._array_types import Key
from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import write_file
from selecttkd_jax.metrics import Row
from selecttkd_jax.sharding import gather_to_host
from selecttkd_jax.training._protocols import Batch
from selecttkd_jax.training._state import stream_key

logger = logging.getLogger(__name__)

# A spike is above the median of so many steps by so many times their median distance from it, and twice the median.
_SEEN, _FEWEST, _DISTANCES = 100, 20, 20.0
_WATCHED = ("loss", "grad_norm")
_HELD_OUT = ("held_out/kl", "held_out/cross_entropy")
# Batches that are written, of those that come one after the other.
_KEPT_IN_A_ROW = 20


class Health:
    """Looks at the rows of a run, counts what was skipped and keeps the batches.

    Args:
        max_skipped: Steps in a row that may be skipped.
        stop_above: The run stops where its held-out number is more than this many times its lowest so far.
        directory: Where the batches of skipped steps go, `step-12.json`. None keeps none.
        rows: What there is of the run already.
        decode: Text of token ids.
        writes: Whether this process writes: of several, only the first one does.
    """

    def __init__(
        self,
        max_skipped: int,
        stop_above: float | None = None,
        directory: Path | None = None,
        rows: Sequence[Row] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        *,
        writes: bool = True,
    ):
        self._max_skipped = max_skipped
        self._stop_above = stop_above
        self._directory = directory
        self._decode = decode
        self._writes = writes
        self._in_a_row = 0
        self._lowest = math.inf
        self.skipped = 0
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=_SEEN) for name in _WATCHED}
        for row in rows:
            self.skipped += "skipped" in row
            self._lowest = min(self._lowest, _held_out(row)[1])
            for name, seen in self._seen.items():
                if name in row:
                    seen.append(row[name])

    @property
    def skipping(self) -> bool:
        """Whether the last step was skipped."""
        return self._in_a_row > 0

    def check(self, row: Row, batch: str) -> Row:
        """The same row of a step that was applied; says where its loss or gradient stands out."""
        self._in_a_row = 0
        for name, seen in self._seen.items():
            value = row[name]
            if len(seen) >= _FEWEST:
                middle = median(seen)
                distance = median(abs(other - middle) for other in seen)
                if value > 2 * abs(middle) and value > middle + _DISTANCES * distance:
                    about = (int(row["step"]), batch, name, value, len(seen), middle)
                    logger.warning("step %d%s: a spike, %s %.4g where the median of %d steps is %.4g", *about)
            seen.append(value)
        return row

    def skip(self, row: Row, batch: str, placed: Batch, key: Key, explain: Callable[[Batch], str]) -> Row:
        """The row of a step that was skipped: what of it is finite, and `skipped`. Every process has to ask.

        Args:
            row: With a loss or a gradient norm that is not finite.
            batch: Which rows these are, in words.
            placed: The batch, on the devices.
            key: The run's.
            explain: Says of a batch what is known of the cause, or nothing.

        Raises:
            InputError: As many steps before it were skipped as may be.
        """
        step = int(row["step"])
        self._in_a_row += 1
        self.skipped += 1
        cause = explain(placed)
        found = f"step {step}{batch}: loss {row['loss']}, gradient norm {row['grad_norm']}"
        is_kept = self._directory is not None and self._in_a_row <= _KEPT_IN_A_ROW
        if is_kept:
            self._keep(step, batch, row, placed, key, cause)
        if self._in_a_row > self._max_skipped:
            if cause:
                raise InputError(f"{found}: {cause}; {_count(self._in_a_row)} in a row skipped")
            raise InputError(
                f"{found}; {_count(self._in_a_row)} in a row skipped (training.max_skipped): lower "
                "optimizer.learning_rate, see that optimizer.clip_norm is above 0, and start with a new output"
            )
        kept = f"; its batch is in {self._directory.name}/step-{step}.json" if is_kept and self._directory else ""
        logger.warning("%s%s: skipped, %d so far%s", found, f": {cause}" if cause else "", self.skipped, kept)
        return {name: value for name, value in row.items() if math.isfinite(value)} | {"skipped": 1.0}

    def check_held_out(self, row: Row) -> None:
        """Raises InputError where the held-out number has risen too far above its lowest value."""
        name, value = _held_out(row)
        if self._stop_above is not None and value < math.inf and value > self._stop_above * self._lowest:
            raise InputError(
                f"step {int(row['step'])}: {name} is {value:.4g}, more than {self._stop_above:g} times its lowest so "
                f"far, {self._lowest:.4g} (training.stop_above): the student diverges; lower optimizer.learning_rate "
                "and start with a new output; the newest checkpoint is from before"
            )
        self._lowest = min(self._lowest, value)

    def _keep(self, step: int, batch: str, row: Row, placed: Batch, key: Key, cause: str) -> None:
        """Writes a batch: what it is, and its arrays by their names."""
        leaves = jax.tree_util.tree_leaves_with_path(placed)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="."): gather_to_host(leaf) for path, leaf in leaves}
        if not self._writes or self._directory is None:
            return
        texts = {
            f"{name} as text": [self._decode(np.trim_zeros(line, "b").tolist()) for line in ids]
            for name, ids in arrays.items()
            if self._decode is not None and name.endswith("input_ids") and ids.ndim == 2
        }
        content = {
            "step": step,
            "rows": batch.strip(" ()"),
            "loss": str(row["loss"]),
            "grad_norm": str(row["grad_norm"]),
            "cause": cause,
            "verification_key": np.asarray(jax.random.key_data(stream_key(key, "verification", step - 1))).tolist(),
            **texts,
            **{name: array.tolist() for name, array in arrays.items()},
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        # A line an entry: arrays of thousands of lines help nobody.
        lines = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items()
        )
        write_file(self._directory / f"step-{step}.json", f"{{\n{lines}\n}}\n")


def _held_out(row: Row) -> tuple[str, float]:
    """The number that training is to lower, with its name; infinity where there is none."""
    return next(((name, row[name]) for name in _HELD_OUT if name in row), ("", math.inf))


def _count(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"
