"""From acceptance to the weight of a token's loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, PerToken
from selecttkd_jax._checks import check_in_range, check_same_shape
from selecttkd_jax._mesh_axes import any_mesh


class TokenWeights(NamedTuple):
    """The weight of each position's loss, and whether its proposal was accepted (or how likely that was)."""

    weight: PerToken
    accepted: PerToken


@any_mesh(like="acceptance")
def token_weights(acceptance: PerToken, uniforms: PerToken | None = None, *, floor: float = 0.01) -> TokenWeights:
    """Full weight where the proposal is accepted, a small floor where it is rejected.

        accepted = 1[u < acceptance],   weight = floor + (1 - floor) accepted

    `floor` is the beta of the paper; 1 is distillation without selection.

    Args:
        acceptance: [...] in [0, 1], from a verifier. NaN stays NaN, and every draw rejects it.
        uniforms: [...] draws from [0, 1), or None. With None `accepted` is the acceptance itself: the weight's
            expectation, which has the lower variance. Soft weights such as `hellinger` want None.
        floor: Weight of a rejected token, in [0, 1].

    Returns:
        TokenWeights of [...] float32, constants to differentiation.

    Raises:
        InputError: floor is out of range.

    Source: SelecTKD supplement, section A and Table 6.
    """
    check_in_range("floor", floor, 0.0, 1.0)
    return weigh(acceptance, uniforms, floor)


def weigh(acceptance: PerToken, uniforms: PerToken | None, floor: float | Array) -> TokenWeights:
    """`token_weights` with any floor: a number, or an array [...]."""
    accepted = acceptance
    if uniforms is not None:
        check_same_shape("uniforms", uniforms, "acceptance", acceptance)
        accepted = (uniforms < acceptance).astype(jnp.float32)
    return TokenWeights(*jax.lax.stop_gradient((floor + (1 - floor) * accepted, accepted)))
