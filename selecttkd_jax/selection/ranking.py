"""From scores to a choice: the top fraction, a threshold, or the two halves of a batch.

Every function returns booleans [...] of the scores' shape: true for valid positions that are kept. Hand them to the
objective as `acceptance`. What is ranked is the array given: a micro-batch, if that is what the caller holds.
"""

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, PerToken, TokenMask
from selecttkd_jax.checks import as_mask, check_in_range, check_one_of, check_same_shape


def top_fraction(
    scores: PerToken, mask: TokenMask, fraction: float, *, per_sequence: bool = False, counting: str = "nearest"
) -> TokenMask:
    """Keeps the valid positions with the highest scores.

    Exactly the counted number is kept: among equal scores the earlier position wins. To keep the lowest, negate the
    scores.

    Args:
      scores: [B, T].
      mask: [B, T] bool: the positions that may be kept.
      fraction: The share of valid positions to keep, in [0, 1].
      per_sequence: Whether each sequence keeps its own share; otherwise the batch is ranked as a whole.
      counting: How many of n are kept. "nearest" is fraction * n, rounded; "quantile" is 1 + floor(fraction (n - 1)),
        the number that reach the linearly interpolated (1 - fraction)-quantile, which is AdaSPEC's rule.

    Returns:
      [B, T] bool. Nothing is kept where nothing is valid, or the fraction is 0.

    Raises:
      InputError: The shapes differ, or an option is out of range.

    Example:
      >>> scores = jnp.array([[0.1, 0.9, 0.5, 0.7]])
      >>> print(top_fraction(scores, jnp.array([[True, True, True, False]]), 0.67))
      [[False  True  True False]]
    """
    check_in_range("fraction", fraction, 0.0, 1.0)
    check_one_of("counting", counting, ("nearest", "quantile"))
    scores, mask = _masked_scores(scores, mask)
    shape = scores.shape
    if not per_sequence:
        scores, mask = scores.reshape(1, -1), mask.reshape(1, -1)
    valid = jnp.sum(mask, axis=-1, keepdims=True).astype(jnp.float32)
    if counting == "nearest":
        keep = jnp.round(fraction * valid)
    else:
        # A product such as 0.7 * 10 may come out just under its integer.
        keep = jnp.where(valid > 0, 1.0 + jnp.floor(fraction * (valid - 1) + 1e-4), 0.0)
    keep = jnp.where(fraction > 0, keep, 0.0)
    kept = _descending_rank(scores, mask).astype(jnp.float32) < keep
    return (kept & mask).reshape(shape)


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
