"""The sums and counts an objective returns, and the one place where a mask turns into coefficients.

Nothing here divides by anything that another micro-batch or device could add to: `loss / count` is taken once, after
all sums are in, so that one batch of 8 equals 8 micro-batches of 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, PerToken, Scalar, TokenIds, TokenMask
from selecttkd_jax._checks import as_mask, check_same_shape
from selecttkd_jax._errors import InputError, check_one_of
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.distill._shadows import Shadow, ShadowSums, ShadowTerms, shadow_means

NORMALIZERS = ("sequence", "token", "weight")
"""What the sum of weighted divergences may be divided by: see `Objective`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenTerms:
    """What an objective says about each position, before any mask: [...] float32 each."""

    loss: PerToken  # what is optimised: the weighted divergence, and any label term
    divergence: PerToken  # unweighted
    weight: PerToken
    accepted: PerToken  # 0 or 1, or its expectation
    shadows: dict[str, ShadowTerms | None] = field(default_factory=dict)  # what other verifiers say, by name


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """Sums over the valid positions of a batch, float32 scalars. Add them up, then divide `loss` by `count`."""

    loss: Scalar  # numerator of the batch's loss
    count: Scalar  # its divisor under the objective's normaliser
    divergence: Scalar  # sum of the unweighted divergence
    weight: Scalar  # sum of the weights
    accepted: Scalar  # sum of acceptances
    tokens: Scalar  # number of valid positions
    sequences: Scalar  # number of sequences with a valid position; where rows are packed, of segments
    accepted_fraction: Scalar  # sum over those sequences of the share of their positions accepted

    @property
    def mean(self) -> Scalar:
        """`loss / count`, and 0 where nothing was counted."""
        return mean_of(self.loss, self.count)

    def means(self) -> dict[str, float]:
        """The numbers a person reads, of sums that are on the host; the one place where sums become means.

        Returns:
            `divergence` (unweighted, per response token), `tar` (token acceptance rate, mean over sequences),
            `tar_pooled` (over all response tokens), `mean_weight`, `loss` (what was minimised: it rises with the share
            of tokens that count, so it comes late), `tokens` (response tokens).
        """

        def mean(total: Scalar, count: Scalar) -> float:
            return float(total) / float(count) if count else 0.0

        return {
            "divergence": mean(self.divergence, self.tokens),
            "tar": mean(self.accepted_fraction, self.sequences),
            "tar_pooled": mean(self.accepted, self.tokens),
            "mean_weight": mean(self.weight, self.tokens),
            "loss": mean(self.loss, self.count),
            "tokens": float(self.tokens),
        }

    @classmethod
    def zeros(cls) -> "LossSums":
        """The sums of nothing: where accumulation starts. With shadows, `ShadowedSums.zeros` of them."""
        return cls(**{field.name: jnp.zeros((), jnp.float32) for field in fields(cls)})

    def __add__(self, other: "LossSums") -> "LossSums":
        if jax.tree.structure(self) != jax.tree.structure(other):
            raise InputError(
                "these are sums of other shadows, or of none: sums of an objective that has some start from "
                "ShadowedSums.zeros(objective.shadows)"
            )
        return jax.tree.map(jnp.add, self, other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShadowedSums(LossSums):
    """The sums of an objective with shadow verifiers, and theirs by name; None for a random gate of the same rate."""

    shadows: dict[str, ShadowSums | None]

    @classmethod
    def zeros(cls, shadows: Sequence[Shadow] = ()) -> "ShadowedSums":
        """The sums of nothing, of an objective with these shadows (`Objective.shadows`).

        Raises:
            InputError: There are no shadows.
        """
        if not shadows:
            raise InputError("name the shadows, objective.shadows: without any, sums are of nothing but LossSums")
        nothing = jnp.zeros((), jnp.float32)
        sums = {name: None if shadow is None else ShadowSums(nothing, nothing, nothing) for name, shadow in shadows}
        return cls(**{entry.name: nothing for entry in fields(LossSums)}, shadows=sums)

    def means(self) -> dict[str, float]:
        """As `LossSums.means`, and of each shadow `shadows/NAME/...`.

        Each has `accepted` (its acceptance per response token), `overlap` and `rejected_overlap` (the Jaccard overlaps
        with the verifier in force of what is accepted, and of what is rejected).
        """
        return super().means() | shadow_means(self.shadows, self.accepted, self.tokens)


def mean_of(loss: Scalar, count: Scalar) -> Scalar:
    """The quotient, and 0 (with no gradient, not NaN) where nothing was counted; a count of NaN is no count of 0."""
    return jnp.where(count <= 0, 0.0, loss) / jnp.where(count <= 0, 1.0, count)


@any_mesh(like="mask")
def token_coefficients(mask: TokenMask, normalizer: str, segment_ids: TokenIds | None = None) -> PerToken:
    """The factor of each position's term in the numerator of the loss, known from the mask alone.

        "sequence"          mask[b, t] / sum_t mask[b, t], the sum over the position's own sequence
        "token", "weight"   mask[b, t]

    Args:
        mask: [B, T], boolean or 0/1: the positions that carry loss.
        normalizer: One of `NORMALIZERS`.
        segment_ids: [B, T], which of the sequences packed in a row a position belongs to; None: a row is one.

    Returns:
        [B, T] float32; zeros for a sequence without valid positions.
    """
    check_one_of("normalizer", normalizer, NORMALIZERS)
    valid = as_mask(mask).astype(jnp.float32)
    if normalizer != "sequence":
        return valid
    if segment_ids is None:
        return valid / jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1.0)
    tokens = jnp.take_along_axis(_sum_by_sequence(valid, segment_ids), segment_ids, axis=-1)
    return valid / jnp.maximum(tokens, 1.0)


@any_mesh()
def reduce_terms(terms: TokenTerms, mask: TokenMask, normalizer: str, segment_ids: TokenIds | None = None) -> LossSums:
    """Sums per-token terms [B, T] over the valid positions of `mask`.

    Args:
        terms: [B, T] each.
        mask: [B, T], boolean or 0/1.
        normalizer: "sequence" (the mean over sequences of each one's mean over its valid positions), "token" (the mean
            over all valid positions) or "weight" (the sum of weights).
        segment_ids: As in `token_coefficients`.

    Returns:
        LossSums, or ShadowedSums where there are shadows; all zero where nothing is valid.
    """
    mask = as_mask(mask)
    check_same_shape("mask", mask, "terms", terms.loss)

    def total(values: Array) -> Scalar:
        return jnp.sum(jnp.where(mask, values, 0.0))

    coefficients = token_coefficients(mask, normalizer, segment_ids)
    tokens_by_sequence = _sum_by_sequence(mask.astype(jnp.float32), segment_ids)
    accepted_by_sequence = _sum_by_sequence(jnp.where(mask, terms.accepted, 0.0), segment_ids)
    tokens = jnp.sum(tokens_by_sequence)
    sequences = jnp.sum((tokens_by_sequence > 0).astype(jnp.float32))
    weight = total(terms.weight)
    sums = LossSums(
        loss=total(coefficients * terms.loss),
        count={"sequence": sequences, "token": tokens, "weight": weight}[normalizer],
        divergence=total(terms.divergence),
        weight=weight,
        accepted=total(terms.accepted),
        tokens=tokens,
        sequences=sequences,
        accepted_fraction=jnp.sum(accepted_by_sequence / jnp.maximum(tokens_by_sequence, 1.0)),
    )
    if not terms.shadows:
        return sums

    def compare(shadow: ShadowTerms | None) -> ShadowSums | None:
        if shadow is None:
            return None
        neither = 1.0 - terms.accepted - shadow.accepted + shadow.both
        return ShadowSums(total(shadow.accepted), total(shadow.both), total(neither))

    shadows = {name: compare(shadow) for name, shadow in terms.shadows.items()}
    return ShadowedSums(**{entry.name: getattr(sums, entry.name) for entry in fields(sums)}, shadows=shadows)


def _sum_by_sequence(values: PerToken, segment_ids: TokenIds | None) -> Array:
    """Sums over each sequence of [B, T]: [B] where a row is one, else [B, T + 1], the sum of segment s at s."""
    if segment_ids is None:
        return jnp.sum(values, axis=-1)
    row_sums = partial(jax.ops.segment_sum, num_segments=values.shape[-1] + 1)
    return jax.vmap(row_sums)(values, segment_ids)
