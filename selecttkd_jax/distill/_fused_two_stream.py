"""The two-stream objective from hidden states: one sweep of the fused head for each stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from selecttkd_jax._array_types import HiddenStates, Scalar
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill._fused_head import fused_head
from selecttkd_jax.distill._inputs import Head, Tokens
from selecttkd_jax.distill._objective import Objective
from selecttkd_jax.distill._sums import LossSums
from selecttkd_jax.distill._two_stream import TwoStreamObjective, TwoStreamSums, add_streams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HiddenStream:
    """What a fused objective needs of the responses of one model: `Stream` with hidden states in place of logits."""

    student_hidden: HiddenStates
    teacher_hidden: HiddenStates
    tokens: Tokens


def fused_two_stream(
    objective: TwoStreamObjective,
    teacher_responses: HiddenStream,
    student_responses: HiddenStream,
    student_head: Head,
    teacher_head: Head,
    *,
    balance: float | Scalar = 0.5,
    **options: Any,
) -> TwoStreamSums:
    """What `objective` returns for both streams' logits, without the logits.

    Args:
        objective: An objective for each stream.
        teacher_responses: Hidden states and masks on the teacher's responses.
        student_responses: The same on the student's responses.
        student_head: Of [Ds, Vs].
        teacher_head: Of [Dt, Vt].
        balance: The student stream's share, in [0, 1].
        **options: Of `fused_head`: `vocab_size`, `chunk_size`, `memory_budget`, `skip_rejected`.

    Returns:
        TwoStreamSums, differentiable to both streams' student hidden states, and to the student's head.

    Raises:
        InputError: A stream is missing, or anything `fused_head` refuses.
        TypeError: `objective` is no TwoStreamObjective.
    """
    if not isinstance(objective, TwoStreamObjective):
        raise TypeError(f"objective must be a TwoStreamObjective (fused_head takes one stream), got {objective!r}")

    def on(name: str, part: Objective, stream: HiddenStream) -> LossSums:
        if not isinstance(stream, HiddenStream):
            raise InputError(f"{name} must be a distill.HiddenStream, got {type(stream).__name__}")
        return fused_head(
            part,
            stream.student_hidden,
            student_head,
            stream.teacher_hidden,
            teacher_head,
            stream.tokens,
            **options,
        )

    return add_streams(
        on("teacher_responses", objective.teacher_responses, teacher_responses),
        on("student_responses", objective.student_responses, student_responses),
        balance,
    )
