"""A teacher and its student on the same tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, Params
from selecttkd_jax.distill import match_vocabulary
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.decoder import forward, head_logits


@dataclass(frozen=True)
class Pair:
    """What is static about a teacher and a student that see the same batch; hashable, so it can be closed over by jit.

    Attributes:
        student: The student's architecture.
        teacher: The teacher's architecture.
        vocab_size: Real size of the tokenizer both share. Head columns past it are padding and count for nothing.
        dtype: Name of the dtype in which both compute; statistics stay float32.
        remat: Whether the student's layers are recomputed in the backward pass instead of stored.
    """

    student: DecoderConfig
    teacher: DecoderConfig
    vocab_size: int
    dtype: str = "float32"
    remat: bool = False

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
        dtype = jnp.dtype(self.dtype)
        hidden, _ = forward(
            self.student, student_params, input_ids, positions, segment_ids, dtype=dtype, remat=self.remat
        )
        student_logits = head_logits(self.student, student_params, hidden)
        teacher_params = jax.lax.stop_gradient(teacher_params)
        hidden, _ = forward(self.teacher, teacher_params, input_ids, positions, segment_ids, dtype=dtype)
        teacher_logits = head_logits(self.teacher, teacher_params, hidden)
        return match_vocabulary(student_logits, teacher_logits, self.vocab_size)
