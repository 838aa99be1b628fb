"""From scores to a choice: the top fraction, a threshold, or the two halves of a batch.

Every function returns booleans [...] of the scores' shape: true for valid positions that are kept. Hand them to the
objective as `acceptance`. What is ranked is the array given: a micro-batch, if that is what the caller holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from selecttkd_jax._array_types import Array, PerToken, TokenMask
from selecttkd_jax._checks import as_mask, check_in_range, check_same_shape
from selecttkd_jax._errors import check_one_of
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses._closed_form import as_float32


@any_mesh(like="scores")
def top_fraction(
    scores: PerToken, mask: TokenMask, fraction: float, *, per_sequence: bool = False, counting: str = "nearest"
) -> TokenMask:
    """Keeps the valid positions with the highest scores.

    Exactly the counted number is kept: among equal scores the earlier position wins. To keep the lowest, negate the
    scores; to drop the highest, keep what this does not (`mask & ~top_fraction(...)`).

    Published code counts in three ways, and n positions of a batch seldom make a whole number:

        "nearest"   fraction * n, rounded
        "floor"     fraction * n, rounded down: Token Cleaning keeps as many, of a batch or of each sequence, and ENT
                    drops as many
        "quantile"  as many as reach the linearly interpolated (1 - fraction)-quantile of the scores: AdaSPEC

    Args:
        scores: [B, T].
        mask: [B, T] bool: the positions that may be kept.
        fraction: The share of valid positions to keep, in [0, 1].
        per_sequence: Whether each sequence keeps its own share; otherwise the batch is ranked as a whole.
        counting: "nearest", "floor" or "quantile". A fraction that is a number is multiplied in float64 under "floor",
            as theirs is; a traced one in its own precision.

    Returns:
        [B, T] bool. Nothing is kept where nothing is valid, or the fraction is 0.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> scores = jnp.array([[0.1, 0.9, 0.5, 0.7]])
        >>> print(top_fraction(scores, jnp.array([[True, True, True, False]]), 0.67))
        [[False  True  True False]]

    Source: Token Cleaning, UCSC-REAL/TokenCleaning, scripts/generate_token_label.py; ENT,
    tianjianl/error_norm_truncation, fairseq/fairseq/criterions/label_smoothed_cross_entropy_token.py (which counts
    padding among the n, and keeps what ties with the last to stay); AdaSPEC, yuezhouhu/adaspec, utils.py.
    """
    check_in_range("fraction", fraction, 0.0, 1.0)
    check_one_of("counting", counting, ("nearest", "floor", "quantile"))
    scores, mask = _masked_scores(scores, mask)
    shape = scores.shape
    if not per_sequence:
        scores, mask = scores.reshape(1, -1), mask.reshape(1, -1)
    valid = jnp.sum(mask, axis=-1, keepdims=True)
    if counting == "nearest":
        keep = jnp.round(fraction * valid.astype(jnp.float32))
    elif counting == "floor":
        keep = _floor_of_products(fraction, valid, scores.shape[-1])
    else:
        # Between two infinite scores there is nothing to interpolate; a quarter of the range takes their place.
        floats = as_float32(scores)
        bound = 0.25 * jnp.finfo(floats.dtype).max
        bounded = jnp.clip(floats, -bound, bound)
        reaching = bounded >= _quantile_from_above(bounded, mask, fraction, valid)
        keep = jnp.sum(reaching & mask, axis=-1, keepdims=True).astype(jnp.float32)
    keep = jnp.where(fraction > 0, keep, 0.0)
    kept = _descending_rank(scores, mask).astype(jnp.float32) < keep
    return (kept & mask).reshape(shape)


def _floor_of_products(fraction: float | Array, counts: Array, largest: int) -> Array:
    """floor(fraction * count), float32, of counts up to `largest`."""
    if isinstance(fraction, Tracer):
        return jnp.floor(fraction * counts.astype(jnp.float32))
    # A table from the host: in float32, 0.29 * 100 would be 29, and not just under it as in Python's own numbers.
    table = np.floor(float(fraction) * np.arange(largest + 1, dtype=np.float64)).astype(np.float32)
    return jnp.take(jnp.asarray(table), counts)


def _quantile_from_above(scores: PerToken, mask: TokenMask, fraction: float | Array, valid: Array) -> PerToken:
    """The (1 - fraction)-quantile of each row's valid scores, [rows, 1], with the roundings of `torch.quantile`."""
    ordered = jnp.sort(jnp.where(mask, scores, jnp.inf), axis=-1)
    last = jnp.maximum(valid - 1, 0)
    # 1 - fraction of a Python number is rounded once, to the scores' precision.
    place = jnp.asarray(1 - fraction, scores.dtype) * last.astype(scores.dtype)
    below = jnp.floor(place).astype(jnp.int32)
    low, high = (jnp.take_along_axis(ordered, jnp.minimum(at, last), axis=-1) for at in (below, below + 1))
    part = place - below.astype(scores.dtype)
    # From the nearer end, which rounding could otherwise miss.
    return jnp.where(part < 0.5, low + part * (high - low), high - (1 - part) * (high - low))


@any_mesh(like="scores")
def at_most(scores: PerToken, mask: TokenMask, threshold: float) -> TokenMask:
    """Keeps the valid positions whose score is at most the threshold (ENT's other rule).

    Args:
        scores: [B, T].
        mask: [B, T] bool.
        threshold: In the unit of the scores.

    Returns:
        [B, T] bool.
    """
    scores, mask = _masked_scores(scores, mask)
    return mask & (scores <= threshold)


@any_mesh(like="scores")
def median_split(scores: PerToken, mask: TokenMask) -> tuple[TokenMask, TokenMask]:
    """Splits the valid positions at the median of their scores.

    ATKD trains the two halves on different terms (see `losses.non_target_kl` and `losses.decoupled_kl`) and averages
    each over its own size: two objectives with `floor=0` and `normalizer="weight"`, one for each mask.

    Args:
        scores: [B, T], for ATKD the teacher's `target_uncertainty`.
        mask: [B, T] bool.

    Returns:
        (below, not below): [B, T] bool each, together the mask. The median of an even number of scores is the lower
        middle one, as `torch.median` has it, and belongs to the upper half. With equal scores the lower half may be
        empty.
    """
    scores, mask = _masked_scores(scores, mask)
    ordered = jnp.sort(jnp.where(mask, scores, jnp.inf).reshape(-1))
    middle = jnp.maximum(jnp.sum(mask) - 1, 0) // 2
    below = scores < ordered[middle]
    return mask & below, mask & ~below


def _masked_scores(scores: PerToken, mask: TokenMask) -> tuple[PerToken, TokenMask]:
    check_same_shape("scores", scores, "mask", mask)
    return jax.lax.stop_gradient(scores), as_mask(mask, rank=None)


def _descending_rank(scores: PerToken, mask: TokenMask) -> Array:
    """Each position's place among the scores of its row, the highest first, invalid ones last."""
    # Two keys, because a valid score may itself be -inf.
    order = jnp.lexsort((-scores, ~mask), axis=-1)
    return jnp.argsort(order, axis=-1)
