"""What the fused head is called with: the head of a model, and what is known of each position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax

from selecttkd_jax._array_types import Array, HeadMatrix, PerSequence, PerToken, TokenIds, TokenMask


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
    """

    mask: TokenMask
    uniforms: PerToken | None = None
    labels: TokenIds | None = None
    alpha: PerSequence | PerToken | None = None
    acceptance: PerToken | None = None
    segment_ids: TokenIds | None = None


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
