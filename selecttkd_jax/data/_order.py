"""The order in which rows are learned from: shuffled from a seed, and mixed where they are of several sources.

Both are functions of the place in the stream, so that a run goes on from any place without having read what is before.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import Any

import numpy as np

from selecttkd_jax.data._rows import Rows

# For ever: grain's own endless length, rounded to batches of one row, is no length any more.
_ENDLESS = 2**48


def shuffle_rows(rows: Rows, seed: int, epochs: int | None = None) -> Any:
    """The rows' indices by their place in one stream: a `grain.MapDataset`.

    Rows of one source are shuffled anew each epoch. Of several with weights w_s, the first n places hold n w_s / sum(w)
    rows of source s, up to a row for each other source; each source is shuffled anew whenever it begins again.
    """
    import grain

    if not rows.is_mixed:
        passes = _ENDLESS // len(rows) if epochs is None else epochs
        return grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat(passes)
    ends = list(accumulate(part.count for part in rows.parts))
    orders = []
    for number, (part, end) in enumerate(zip(rows.parts, ends, strict=True)):
        # Another seed for each, or sources of one size would all be shuffled alike.
        (own,) = np.random.SeedSequence([seed, number]).generate_state(1)
        order = grain.MapDataset.range(end - part.count, end).seed(int(own)).shuffle()
        orders.append(order.repeat(_ENDLESS // part.count))
    length = _ENDLESS if epochs is None else epochs * len(rows)
    weights = [part.weight for part in rows.parts if part.weight is not None]
    # grain's own mix rounds weights to hundredths of the smallest one.
    selection: Any = Mixture(weights, length)
    return grain.MapDataset.select_from_datasets(orders, selection)


class Mixture:
    """For each place of a stream the source it is from, and the place among that source's: a selection map of grain.

    In exact whole numbers: of n places, a source of weight w among those with the weights w, w', w'', ... gets
    ceil(n w / (w + w' + w'' + ...)), and the others share the rest by the same rule.

    Args:
        weights: Of the sources, each as its decimal number says: 0.1 is a tenth.
        length: Places in the stream.

    Example:
        >>> [Mixture([3, 1], 8)[place][0] for place in range(8)]
        [0, 0, 0, 1, 0, 0, 0, 1]
    """

    def __init__(self, weights: Sequence[float], length: int):
        exact = [Fraction(str(weight)) for weight in weights]
        unit = lcm(*(weight.denominator for weight in exact))
        self._weights = [int(weight * unit) for weight in exact]
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> tuple[int, int]:
        before, after, rest = place, place + 1, sum(self._weights)
        for source, weight in enumerate(self._weights):
            # How many of the first places are left to the sources behind this one, without this place and with it.
            left_before, left_after = before * (rest - weight) // rest, after * (rest - weight) // rest
            if left_before == left_after:
                return source, before - left_before
            before, after, rest = left_before, left_after, rest - weight
        raise AssertionError("the last source has all that is left")
