"""One vocabulary for two heads.

Models of one family pad their heads differently (152,064 and 151,936 columns over a tokenizer of 151,650 ids). The
ids they share are the tokenizer's; everything past them is padding that no text contains. So both are cut to the
narrower width, and the padding left over is excluded on both sides.
"""

import logging

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Logits
from selecttkd_jax._errors import InputError

logger = logging.getLogger(__name__)


def shared_width(student_width: int, teacher_width: int, tokenizer_size: int) -> int:
    """The number of columns to keep of both heads: the narrower width.

    Not the tokenizer's size: a padded width keeps the shapes hardware and meshes divide well.

    Raises:
        InputError: A head is too narrow for the tokenizer.
    """
    width = min(student_width, teacher_width)
    if width < tokenizer_size:
        raise InputError(
            f"the tokenizer has {tokenizer_size} ids, but the student's head has {student_width} columns and the "
            f"teacher's {teacher_width}; resize the narrower one to the tokenizer before distilling"
        )
    return width


def log_shared_width(student_width: int, teacher_width: int, tokenizer_size: int) -> None:
    """Checks like `shared_width`, and logs one line when anything is cut or masked: once a run, not once a trace."""
    width = shared_width(student_width, teacher_width, tokenizer_size)
    if not student_width == teacher_width == tokenizer_size:
        logger.info(
            "vocabulary: student head %d, teacher head %d, tokenizer %d; both cut to %d, ids from %d on are masked",
            student_width,
            teacher_width,
            tokenizer_size,
            width,
            tokenizer_size,
        )


def mask_vocabulary(logits: Logits, tokenizer_size: int) -> Logits:
    """Excludes the ids past the tokenizer's real size: -inf, hence probability 0.

    Args:
        logits: [..., V] with V at least `tokenizer_size`.
        tokenizer_size: Number of real ids.

    Returns:
        [..., V] of the same dtype; `logits` itself if there is nothing to mask.
    """
    width = logits.shape[-1]
    if width < tokenizer_size:
        raise InputError(f"logits have {width} columns, fewer than the tokenizer's {tokenizer_size} ids")
    if width == tokenizer_size:
        return logits
    token_ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(token_ids < tokenizer_size, logits, -jnp.inf)


def match_vocabulary(student_logits: Logits, teacher_logits: Logits, tokenizer_size: int) -> tuple[Logits, Logits]:
    """Cuts both to the narrower width and excludes ids past the tokenizer's real size on both sides.

    Args:
        student_logits: [..., V_student].
        teacher_logits: [..., V_teacher].
        tokenizer_size: Number of ids the shared tokenizer has.

    Returns:
        Student and teacher logits, [..., V] each.

    Raises:
        InputError: A head is too narrow for the tokenizer.
    """
    width = shared_width(student_logits.shape[-1], teacher_logits.shape[-1], tokenizer_size)
    return (
        mask_vocabulary(student_logits[..., :width], tokenizer_size),
        mask_vocabulary(teacher_logits[..., :width], tokenizer_size),
    )
