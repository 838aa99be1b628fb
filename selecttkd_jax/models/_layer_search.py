"""Which layers a model misses least: three searches over a cost, which know no model.

Layers are counted from 0. A search returns its drops in their order, each with what it cost; `kept_layers` turns them
into the layers that are left.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from selecttkd_jax._errors import InputError

# What a model without the layers that are False in a mask [L] loses: a number, the smaller the better.
Cost = Callable[[np.ndarray], float]


class Drop(NamedTuple):
    """One step of a search.

    Attributes:
        layers: What was taken out in this step.
        cost: Of the model without these and all layers dropped before; for influence, the layer's own.
    """

    layers: tuple[int, ...]
    cost: float


def check_keep_count(num_layers: int, keep_count: int) -> None:
    """Raises InputError unless `keep_count` of `num_layers` layers can be kept."""
    if not 1 <= keep_count <= num_layers:
        raise InputError(f"the number of layers to keep must be between 1 and {num_layers}, got {keep_count}")


def kept_layers(num_layers: int, drops: Sequence[Drop]) -> tuple[int, ...]:
    """The layers that no drop took out.

    Example:
        >>> kept_layers(6, [Drop((3,), 0.1), Drop((1,), 0.4)])
        (0, 2, 4, 5)
    """
    gone = {layer for drop in drops for layer in drop.layers}
    return tuple(layer for layer in range(num_layers) if layer not in gone)


def count_tries(rule: str, num_layers: int, keep_count: int) -> int:
    """How often `drop_block` ("block") or `drop_greedily` ("kl") asks for a cost."""
    if rule == "block":
        return keep_count + 1 if keep_count < num_layers else 0
    return sum(range(keep_count + 1, num_layers + 1))


def drop_block(num_layers: int, keep_count: int, cost: Cost) -> list[Drop]:
    """Drops the block of neighbouring layers without which the model costs least, of all such blocks.

    The first of equals. Source: that neighbours go together is from Gromov et al., "The Unreasonable Ineffectiveness
    of the Deeper Layers" (arXiv:2403.17887), who take the block by the angle between what goes in and what comes out,
    and not by trying.

    Example:
        >>> drop_block(5, 3, lambda keep: abs(2 - float((~keep).nonzero()[0][0])))
        [Drop(layers=(2, 3), cost=0.0)]
    """
    check_keep_count(num_layers, keep_count)
    size = num_layers - keep_count
    if not size:
        return []
    blocks = [tuple(range(start, start + size)) for start in range(keep_count + 1)]
    return [min((Drop(block, _try(cost, num_layers, block)) for block in blocks), key=lambda drop: drop.cost)]


def drop_greedily(
    num_layers: int, keep_count: int, cost: Cost, on_drop: Callable[[Drop], None] = lambda drop: None
) -> list[Drop]:
    """Drops the layer without which the model costs least, then of the others the next, and so on.

    The first of equals. It tries `L + (L - 1) + ...` models, a term a drop.

    Args:
        num_layers: L.
        keep_count: Layers to keep.
        cost: Of a mask [L] of kept layers.
        on_drop: Is told of each drop.

    Source: the search of Song et al., "SLEB" (arXiv:2402.09025), whose cost is the likelihood of calibration text.

    Example:
        >>> drop_greedily(4, 2, lambda keep: float(keep @ [3, 1, 1, 2]))
        [Drop(layers=(0,), cost=4.0), Drop(layers=(3,), cost=2.0)]
    """
    check_keep_count(num_layers, keep_count)
    drops: list[Drop] = []
    for _ in range(num_layers - keep_count):
        gone = tuple(layer for drop in drops for layer in drop.layers)
        tried = [Drop((one,), _try(cost, num_layers, (*gone, one))) for one in kept_layers(num_layers, drops)]
        drops.append(min(tried, key=lambda drop: drop.cost))
        on_drop(drops[-1])
    return drops


def drop_least(keep_count: int, influence: Sequence[float]) -> list[Drop]:
    """Drops the layers of least influence, the least first.

    Source: the Block Influence of Men et al., "ShortGPT" (arXiv:2403.03853), 1 - cos(in, out) of a layer.

    Example:
        >>> drop_least(2, [0.5, 0.1, 0.2, 0.9])
        [Drop(layers=(1,), cost=0.1), Drop(layers=(2,), cost=0.2)]
    """
    num_layers = len(influence)
    check_keep_count(num_layers, keep_count)
    rising = sorted(range(num_layers), key=lambda layer: influence[layer])
    return [Drop((layer,), float(influence[layer])) for layer in rising[: num_layers - keep_count]]


def _try(cost: Cost, num_layers: int, gone: Sequence[int]) -> float:
    return float(cost(~np.isin(np.arange(num_layers), gone)))
