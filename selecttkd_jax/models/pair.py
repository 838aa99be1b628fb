"""A teacher and its student on the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, HiddenStates, Params
from selecttkd_jax.distill import match_vocabulary
from selecttkd_jax.mesh_axes import automatic_axes
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.decoder import forward, head_logits, stored_head
from selecttkd_jax.models.lora import LoraConfig, with_adapters
from selecttkd_jax.sharding import padded_vocabulary


@dataclass(frozen=True)
class Pair:
    """What is static about a teacher and a student that see the same batch; hashable, so it can be closed over by jit.

    Attributes:
        student: The student's architecture.
        teacher: The teacher's architecture.
        vocab_size: Real size of the tokenizer both share. Head columns past it are padding and count for nothing.
        dtype: Name of the dtype in which both compute; statistics stay float32.
        remat: Whether the student's layers are recomputed in the backward pass instead of stored.
        lora: What the student's adapters are made with; None where all of it is trained.
    """

    student: DecoderConfig
    teacher: DecoderConfig
    vocab_size: int
    dtype: str = "float32"
    remat: bool = False
    lora: LoraConfig | None = None

    def student_params(self, trained: Params, base: Params | None = None) -> Params:
        """The student's parameters for the other methods: `trained` itself, or `trained` as adapters of a `base`."""
        return trained if self.lora is None or base is None else with_adapters(base, trained, self.lora)

    def hidden(
        self, student_params: Params, teacher_params: Params, input_ids: Array, positions: Array, segment_ids: Array
    ) -> tuple[HiddenStates, HiddenStates]:
        """Hidden states `[B, T, D]` of student and teacher in `dtype`; the teacher's carry no gradient.

        Args:
            student_params: The student's parameters, in any dtype.
            teacher_params: The teacher's parameters, in any dtype.
            input_ids: Token ids `[B, T]`.
            positions: Position of each token in its segment `[B, T]`.
            segment_ids: Segment of each token, 0 for padding `[B, T]`.
        """
        dtype = jnp.dtype(self.dtype)
        inputs = input_ids, positions, segment_ids
        student_hidden, _ = forward(self.student, student_params, *inputs, dtype=dtype, remat=self.remat)
        teacher_hidden, _ = forward(self.teacher, jax.lax.stop_gradient(teacher_params), *inputs, dtype=dtype)
        return student_hidden, teacher_hidden

    def fused(
        self, function: Callable[..., Any], student_params: Params, teacher_params: Params, batch: Any, **options: Any
    ) -> Any:
        """`function` of both models' hidden states and heads: `distill.fused_head` or `distill.map_logits`.

        Args:
            function: Takes student hidden, student head, teacher hidden, teacher head, loss mask and options; its
                other arguments bound.
            student_params: The student's parameters, in any dtype.
            teacher_params: The teacher's parameters, in any dtype.
            batch: A `data.Batch`.
            **options: Handed on.
        """
        inputs = batch.input_ids, batch.positions, batch.segment_ids
        student_hidden, teacher_hidden = self.hidden(student_params, teacher_params, *inputs)
        return function(
            student_hidden,
            self._head(self.student, student_params),
            teacher_hidden,
            self._head(self.teacher, teacher_params),
            batch.loss_mask,
            vocab_size=self.vocab_size,
            vocab_first=(self.student.tied_head, self.teacher.tied_head),
            **options,
        )

    def _head(self, config: DecoderConfig, params: Params) -> Array:
        """The head as stored; on a mesh in `dtype`, in which it is gathered, padded to a V that divides."""
        matrix = stored_head(config, params)
        if "fsdp" in automatic_axes():
            matrix = matrix.astype(jnp.dtype(self.dtype))
        return padded_vocabulary(matrix, 0 if config.tied_head else 1)

    def logits(
        self, student_params: Params, teacher_params: Params, input_ids: Array, positions: Array, segment_ids: Array
    ) -> tuple[Array, Array]:
        """Logits of student and teacher over the vocabulary both share; the teacher's carry no gradient.

        Args:
            student_params: The student's parameters, in any dtype.
            teacher_params: The teacher's parameters, in any dtype.
            input_ids: Token ids `[B, T]`.
            positions: Position of each token in its segment `[B, T]`.
            segment_ids: Segment of each token, 0 for padding `[B, T]`.

        Returns:
            Two float32 arrays `[B, T, V]`, V the narrower head; ids past `vocab_size` hold -inf on both sides.
        """
        hidden = self.hidden(student_params, teacher_params, input_ids, positions, segment_ids)
        student_logits = head_logits(self.student, student_params, hidden[0])
        teacher_logits = head_logits(self.teacher, jax.lax.stop_gradient(teacher_params), hidden[1])
        return match_vocabulary(student_logits, teacher_logits, self.vocab_size)
