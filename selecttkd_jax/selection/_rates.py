"""Token acceptance rates and the other numbers that show what a selection did.

Each comes as a numerator and a denominator, so that micro-batches and devices can be added up before dividing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken, TokenIds, TokenMask
from selecttkd_jax._checks import as_mask, check_count, check_same_shape
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.selection._calling import call_with_labels
from selecttkd_jax.selection._weights import token_weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rate:
    """A quotient of sums, or an array of them. Add rates up over batches, then take the `value`."""

    numerator: Array
    denominator: Array

    @property
    def value(self) -> Array:
        """The quotient, and 0 where nothing was counted; NaN in a sum shows."""
        nothing = self.denominator <= 0
        return jnp.where(nothing, 0, self.numerator / jnp.where(nothing, 1, self.denominator))

    def __add__(self, other: "Rate") -> "Rate":
        return jax.tree.map(jnp.add, self, other)


@any_mesh()
def acceptance_rate(accepted: PerToken, mask: TokenMask) -> Rate:
    """Token acceptance rate (TAR) over all valid positions together.

        TAR = sum_{b,t} accepted / sum_{b,t} 1

    Args:
        accepted: [B, T] in [0, 1].
        mask: [B, T] bool. Narrow it to ask about some positions: `mask & is_stop_token(labels, stop_ids)`.

    Returns:
        Rate of scalars.
    """
    check_same_shape("accepted", accepted, "mask", mask)
    mask = as_mask(mask, rank=None)
    return Rate(_total(accepted, mask), _count(mask))


@any_mesh()
def acceptance_rate_by_sequence(accepted: PerToken, mask: TokenMask) -> Rate:
    """Token acceptance rate as the mean over sequences of each one's accepted fraction (the paper's).

        TAR = mean_b (sum_t accepted[b, t] / sum_t 1)

    Args:
        accepted: [B, T] in [0, 1].
        mask: [B, T] bool. Sequences without a valid position do not count.

    Returns:
        Rate of scalars.
    """
    check_same_shape("accepted", accepted, "mask", mask)
    mask = as_mask(mask, rank=None)
    lengths = jnp.sum(mask.astype(jnp.float32), axis=-1)
    fractions = jnp.sum(jnp.where(mask, accepted, 0.0), axis=-1) / jnp.maximum(lengths, 1.0)
    return Rate(jnp.sum(fractions), _count(lengths > 0))


@any_mesh()
def acceptance_rate_by_position(accepted: PerToken, mask: TokenMask, *, bins: int, bin_size: int = 1) -> Rate:
    """Token acceptance rate by place in the response: the first valid position of a sequence has place 0.

    Args:
        accepted: [B, T] in [0, 1].
        mask: [B, T] bool.
        bins: How many; the last one takes everything beyond.
        bin_size: Places per bin.

    Returns:
        Rate of [bins].
    """
    check_same_shape("accepted", accepted, "mask", mask)
    check_count("bins", bins)
    check_count("bin_size", bin_size)
    mask = as_mask(mask)
    place = jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1
    bin_index = jnp.clip(place // bin_size, 0, bins - 1)
    in_bin = (bin_index[..., None] == jnp.arange(bins)[None, None, :]) & mask[..., None]
    counts = jnp.sum(in_bin.astype(jnp.float32), axis=(0, 1))
    return Rate(jnp.sum(jnp.where(in_bin, accepted[..., None], 0.0), axis=(0, 1)), counts)


@any_mesh(like="labels")
def is_stop_token(labels: TokenIds, stop_ids: Sequence[int]) -> TokenMask:
    """Which labels end a turn: [B, T] bool. On-policy, rejections gather there."""
    return jnp.any(labels[..., None] == jnp.asarray(stop_ids, labels.dtype)[None, None, :], axis=-1)


@any_mesh()
def rejected_weight_share(accepted: PerToken, mask: TokenMask, *, floor: float) -> Rate:
    """The share of all token weight that rejected tokens still carry.

        share = sum floor (1 - accepted) / sum (floor + (1 - floor) accepted)

    Args:
        accepted: [B, T] in [0, 1].
        mask: [B, T] bool.
        floor: Weight of a rejected token.

    Returns:
        Rate of scalars.
    """
    check_same_shape("accepted", accepted, "mask", mask)
    mask = as_mask(mask, rank=None)
    return Rate(floor * _total(1.0 - accepted, mask), _total(token_weights(accepted, floor=floor).weight, mask))


@any_mesh()
def overlap(accepted: PerToken, other: PerToken, mask: TokenMask) -> Rate:
    """Jaccard overlap of what two selections accept.

        J = sum min(a, b) / sum max(a, b)    (of sets: |A and B| / |A or B|)

    Where nearly everything is accepted, the overlap of the rejections, `overlap(1 - a, 1 - b, mask)`, says more.

    Args:
        accepted: [B, T] in [0, 1].
        other: [B, T] in [0, 1].
        mask: [B, T] bool.

    Returns:
        Rate of scalars.
    """
    check_same_shape("accepted", accepted, "other", other)
    check_same_shape("accepted", accepted, "mask", mask)
    mask = as_mask(mask, rank=None)
    return Rate(_total(jnp.minimum(accepted, other), mask), _total(jnp.maximum(accepted, other), mask))


@any_mesh()
def shadow_overlaps(
    verifiers: Mapping[str, Callable],
    accepted: PerToken,
    student_logits: Logits,
    teacher_logits: Logits,
    mask: TokenMask,
    uniforms: PerToken | None = None,
    labels: TokenIds | None = None,
) -> dict[str, dict[str, Rate]]:
    """Runs other verifiers on the same batch and compares them with the one in force.

    Args:
        verifiers: The shadows, by name.
        accepted: [B, T], what the verifier in force accepted.
        student_logits: [B, T, V].
        teacher_logits: [B, T, V].
        mask: [B, T] bool.
        uniforms: [B, T], those of the verifier in force, so that both decide with the same luck; or None.
        labels: [B, T], for verifiers that take them.

    Returns:
        By name, {"accepted": its acceptance rate, "overlap": the Jaccard overlap of acceptances, "rejected_overlap":
        that of rejections}.
    """

    def compare(verifier: Callable) -> dict[str, Rate]:
        acceptance = call_with_labels(verifier, "verifier", student_logits, teacher_logits, labels)
        shadow = token_weights(acceptance, uniforms, floor=0.0).accepted
        return {
            "accepted": acceptance_rate(shadow, mask),
            "overlap": overlap(accepted, shadow, mask),
            "rejected_overlap": overlap(1.0 - accepted, 1.0 - shadow, mask),
        }

    return {name: compare(verifier) for name, verifier in verifiers.items()}


def _total(values: PerToken, mask: TokenMask) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0))


def _count(mask: Array) -> Array:
    return jnp.sum(mask.astype(jnp.float32))
