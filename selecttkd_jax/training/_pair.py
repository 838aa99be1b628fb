"""A teacher and its student on the same tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, HiddenStates, Params
from selecttkd_jax._mesh_axes import automatic_axes
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import Head, match_vocabulary
from selecttkd_jax.models import DecoderConfig, LoraConfig, attach_adapters, forward, head_logits, stored_head
from selecttkd_jax.sharding import pad_vocabulary


class Frozen(NamedTuple):
    """What a step reads and never changes.

    Attributes:
        teacher: The teacher's parameters; None where there is no teacher.
        base: What the trained adapters adapt; None where all of the student is trained.
    """

    teacher: Params | None = None
    base: Params | None = None


@dataclass(frozen=True)
class Pair:
    """What is static about a teacher and a student that see the same batch; hashable, so it can be closed over by jit.

    Attributes:
        student: The student's architecture.
        teacher: The teacher's architecture; None where there is no teacher.
        vocab_size: Real size of the tokenizer both share. Head columns past it are padding and count for nothing.
        dtype: Name of the dtype in which both compute; statistics stay float32.
        remat: What is kept of the student's layers for the backward pass, one of `models.REMATS`.
        lora: What the student's adapters are made with; None where all of it is trained.
        attention: How attention over whole rows is computed, from `models.choose_attention`.
    """

    student: DecoderConfig
    teacher: DecoderConfig | None
    vocab_size: int
    dtype: str = "float32"
    remat: str = "kept"
    lora: LoraConfig | None = None
    attention: str = "xla"

    def student_params(self, trained: Params, base: Params | None = None) -> Params:
        """The student's parameters for the other methods: `trained` itself, or `trained` as adapters of a `base`."""
        return trained if self.lora is None or base is None else attach_adapters(base, trained, self.lora)

    def hidden(
        self, student_params: Params, teacher_params: Params | None, batch: Batch
    ) -> tuple[HiddenStates, HiddenStates | None]:
        """Hidden states `[B, T, D]` of student and teacher in `dtype`; the teacher's carry no gradient.

        Args:
            student_params: The student's parameters, in any dtype.
            teacher_params: The teacher's parameters, in any dtype; not looked at where there is no teacher.
            batch: Rows `[B, T]`.
        """
        dtype = jnp.dtype(self.dtype)
        inputs = batch.input_ids, batch.positions, batch.segment_ids
        options = {"dtype": dtype, "attention": self.attention}
        # The names tell profiles and planning whose kernels these are.
        with jax.named_scope("student"):
            student_hidden, _ = forward(self.student, student_params, *inputs, remat=self.remat, **options)
        if self.teacher is None:
            return student_hidden, None
        teacher_params = jax.lax.stop_gradient(_require(teacher_params))
        with jax.named_scope("teacher"):
            teacher_hidden, _ = forward(self.teacher, teacher_params, *inputs, **options)
        return student_hidden, teacher_hidden

    def heads(self, student_params: Params, teacher_params: Params | None) -> tuple[Head, Head | None]:
        """The heads of student and teacher as the fused head takes them."""
        student_head = self._head(self.student, student_params)
        return student_head, None if self.teacher is None else self._head(self.teacher, _require(teacher_params))

    def _head(self, config: DecoderConfig, params: Params) -> Head:
        """The head as stored; on a mesh in `dtype`, in which it is gathered, padded to a V that divides."""
        matrix = stored_head(config, params)
        if "fsdp" in automatic_axes():
            matrix = matrix.astype(jnp.dtype(self.dtype))
        matrix = pad_vocabulary(matrix, 0 if config.tied_head else 1)
        return Head(matrix, vocab_first=config.tied_head)

    def logits(self, student_params: Params, teacher_params: Params, batch: Batch) -> tuple[Array, Array]:
        """Logits of student and teacher over the vocabulary both share; the teacher's carry no gradient.

        Args:
            student_params: The student's parameters, in any dtype.
            teacher_params: The teacher's parameters, in any dtype.
            batch: Rows `[B, T]`.

        Returns:
            Two float32 arrays `[B, T, V]`, V the narrower head; ids past `vocab_size` hold -inf on both sides.
        """
        student_hidden, teacher_hidden = self.hidden(student_params, teacher_params, batch)
        assert self.teacher is not None and teacher_hidden is not None, "logits of a pair need a teacher"
        student_logits = head_logits(self.student, student_params, student_hidden)
        teacher_logits = head_logits(self.teacher, jax.lax.stop_gradient(teacher_params), teacher_hidden)
        return match_vocabulary(student_logits, teacher_logits, self.vocab_size)


def _require(teacher_params: Params | None) -> Params:
    if teacher_params is None:
        raise TypeError("this pair has a teacher, whose parameters are missing: Frozen(teacher=...)")
    return teacher_params
