"""Shadow verifiers: what others would have accepted of the same tokens, for the log alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import PerToken, Scalar
from selecttkd_jax.selection._controls import is_random
from selecttkd_jax.selection._weights import weigh

Shadow = tuple[str, Callable | None]
"""A name and a verifier; None: a random gate of the same rate as the verifier in force."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShadowTerms:
    """What a shadow says about each position: [...] float32 each."""

    accepted: PerToken
    both: PerToken  # accepted by the verifier in force, too


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShadowSums:
    """Sums over the valid positions of a batch, float32 scalars."""

    accepted: Scalar
    both: Scalar  # accepted by the verifier in force, too
    neither: Scalar

    def means(self, tokens: float) -> dict[str, float]:
        """`accepted` (per token), and the Jaccard overlaps of acceptances (`overlap`) and of rejections."""
        accepted, both, neither = (float(total) for total in (self.accepted, self.both, self.neither))
        return {
            "accepted": accepted / tokens if tokens else 0.0,
            "overlap": both / (tokens - neither) if tokens > neither else 0.0,
            "rejected_overlap": neither / (tokens - both) if tokens > both else 0.0,
        }


def shadow_terms(
    shadow: Callable,
    acceptance: PerToken,
    uniforms: PerToken | None,
    verifier: Callable,
    accepted: PerToken,
) -> ShadowTerms:
    """Compares a shadow's acceptance with what the verifier in force accepted, [...] each.

    Both decide by the same draw, so that they differ where the verifiers do. A random gate has luck of its own: it is
    compared in expectation over it, where both accept with the product of the two probabilities.

    Args:
        shadow: Another verifier.
        acceptance: Its acceptance.
        uniforms: The draws of the verifier in force, or None.
        verifier: The one in force.
        accepted: What that accepted, 0 or 1, or its expectation.
    """
    if is_random(shadow) or is_random(verifier):
        acceptance = jax.lax.stop_gradient(acceptance)
        return ShadowTerms(acceptance, accepted * acceptance)
    decided = weigh(acceptance, uniforms, 0.0).accepted
    return ShadowTerms(decided, jnp.minimum(accepted, decided))


def shadow_means(shadows: dict[str, ShadowSums | None], accepted: Scalar, tokens: Scalar) -> dict[str, float]:
    """The numbers of every shadow by its name, `shadows/NAME/...`."""
    number = float(tokens)
    rate = float(accepted) / number if number else 0.0
    by_chance = ShadowSums(rate * number, rate * rate * number, (1.0 - rate) ** 2 * number)  # pyright: ignore[reportArgumentType]
    return {
        f"shadows/{name}/{key}": value
        for name, sums in shadows.items()
        for key, value in (by_chance if sums is None else sums).means(number).items()
    }


def check_shadows(shadows: Sequence[Shadow]) -> None:
    """Raises TypeError unless these are pairs of a name and a verifier or None, each name once."""
    for pair in shadows:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"shadows must be pairs of a name and a verifier, got {pair!r}")
        if pair[1] is not None and not callable(pair[1]):
            raise TypeError(f"the shadow {pair[0]} must be a function of logits or None, got {pair[1]!r}")
    names = [name for name, _ in shadows]
    if len(set(names)) < len(names):
        raise TypeError(f"the names of shadows must differ, got {', '.join(names)}")
