"""What the fused head is called with: the head of a model, and what is known of each position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from selecttkd_jax._array_types import Array, HeadMatrix, PerSequence, PerToken, Scalar, TokenIds, TokenMask
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """What is known of each position of a batch; a pytree.

    Attributes:
        mask: [B, T], boolean or 0/1: the positions that carry loss.
        uniforms: [B, T] draws from [0, 1), or None for the expectation over them.
        labels: [B, T] token ids, if the objective uses them.
        alpha: [B], a skew per sequence, or [B, T], a skew per position, in place of the divergence's own.
        acceptance: [B, T] in [0, 1] in place of the verifier's: how ranking selectors and cached verdicts enter.
        segment_ids: [B, T] integers, which of the sequences packed in a row a position belongs to, from 1 to T; 0 for
            padding. The "sequence" normaliser and the acceptance rate go by them. None: a row is one sequence.
        floor: A number or [B, T], in place of the objective's, like what follows. `Schedules.at` gives a step's.
        temperature: Above 0.
        k: Integers of at least 1, in place of the verifier's k; shadows keep theirs.
    """

    mask: TokenMask
    uniforms: PerToken | None = None
    labels: TokenIds | None = None
    alpha: PerSequence | PerToken | None = None
    acceptance: PerToken | None = None
    segment_ids: TokenIds | None = None
    floor: Scalar | PerToken | None = None
    temperature: Scalar | PerToken | None = None
    k: Array | None = None

    def spread(self, *, coefficient: bool) -> dict[str, Array | None]:
        """`floor`, `temperature` and `k` of each position, [B, T], or None; see `spread_options`."""
        return spread_options(
            jnp.shape(self.mask), coefficient=coefficient, floor=self.floor, temperature=self.temperature, k=self.k
        )


def spread_options(
    shape: tuple[int, ...], *, coefficient: bool, floor: Any, temperature: Any, k: Any
) -> dict[str, Array | None]:
    """Numbers or arrays of a shape as arrays of that shape, by their names; None stays None.

    Args:
        shape: The mask's.
        coefficient: Whether the floor is the coefficient of another divergence; see `check_floor`.
        floor: In place of the objective's.
        temperature: The same.
        k: The same, of the verifier, which checks it.

    Raises:
        InputError: One is neither a number nor of that shape, or out of range (traced values pass unseen).
    """
    options = {"floor": floor, "temperature": temperature, "k": k}
    for name, value in options.items():
        if value is not None and jnp.shape(value) not in ((), shape):
            raise InputError(f"{name} must be a number or have the shape of the mask, {shape}, got {jnp.shape(value)}")
    if floor is not None:
        check_floor("floor", floor, coefficient=coefficient)
    if temperature is not None and not isinstance(temperature, Tracer):
        values = np.asarray(temperature)
        if not np.all((values > 0) & (values < np.inf)):
            raise InputError(f"temperature must be above 0 and finite, got {temperature}")
    return {
        name: None if value is None else jnp.broadcast_to(jnp.asarray(value), shape) for name, value in options.items()
    }


def check_floor(name: str, floor: Any, *, coefficient: bool) -> None:
    """Raises InputError unless floors are shares in [0, 1], or coefficients that are finite and at least 0.

    Traced values pass unseen.
    """
    if not coefficient:
        check_in_range(name, floor, 0.0, 1.0)
    elif not isinstance(floor, Tracer) and not np.all((np.asarray(floor) >= 0) & (np.asarray(floor) < np.inf)):
        raise InputError(f"{name} must be finite and at least 0, got {floor}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """The head of a model: `logits = hidden @ matrix + bias`; a pytree, whose gradient has its layout.

    Attributes:
        matrix: [D, V], or [V, D] if `vocab_first`.
        bias: [V], or None.
        vocab_first: Whether the matrix is a tied embedding table, which then needs no transposed copy.
    """

    matrix: HeadMatrix
    bias: Array | None = None
    vocab_first: bool = field(default=False, metadata={"static": True})


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raises TypeError unless `value` is a `kind` of this file; the message says how to make one."""
    if not isinstance(value, kind):
        parts = {Head: "distill.Head(matrix)", Tokens: "distill.Tokens(mask, uniforms)"}
        raise TypeError(f"{name} must be a {parts[kind]}, got {type(value).__name__}")
