"""cuDNN's attention over packed rows: it is told where each text starts and how long it is, and visits nothing else.

JAX has it under a name that is not public (jax#29731 asks for one). It runs on Hopper and what came after.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selecttkd_jax._packed_rows import most_texts

SINCE = (9, 0)
"""The first compute capability that runs it."""

# Before, JAX counted the starts of keys in heads of the queries, and the kernel read other tokens (jax#39521).
# Where keys have as many heads, both are one.
_COUNTS_KEY_HEADS = jax.__version_info__ >= (0, 11, 1)


class Texts(NamedTuple):
    """The texts of packed rows; -1 where a row has fewer than it may have.

    Attributes:
        starts: The slot of each text's first token.
        lengths: Its tokens.
    """

    starts: Int[Array, "B M"]
    lengths: Int[Array, "B M"]


def is_there() -> bool:
    """Whether this JAX has what `attend_to_texts` calls."""
    try:
        from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention
    except ImportError:
        return False
    known = inspect.signature(dot_product_attention).parameters
    return {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "mask_type"} <= set(known) and hasattr(
        MaskType, "PADDING_CAUSAL"
    )


def find_texts(segment_ids: Int[Array, "B T"]) -> Texts:
    """Where the texts of rows are.

    The padding behind them counts as one more: every slot is then in a text, and none is left unwritten.
    """
    length = segment_ids.shape[1]
    begins = _begins(segment_ids)

    def of_row(begins: Bool[Array, " T"]) -> Int[Array, " M"]:
        return jnp.nonzero(begins, size=most_texts(length) + 1, fill_value=length)[0]

    starts = jax.vmap(of_row)(begins).astype(jnp.int32)
    lengths = jnp.diff(starts, axis=1, append=length)
    there = starts < length
    return Texts(jnp.where(there, starts, -1), jnp.where(there, lengths, -1))


def are_few(segment_ids: Int[Array, "B T"]) -> Bool[Array, " B"]:
    """Rows of no more texts than there is room for."""
    return jnp.sum(_begins(segment_ids), axis=1) <= most_texts(segment_ids.shape[1]) + 1


def _begins(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Slots in which another segment begins; the first one is one."""
    return jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] + 1) != 0


def attend_to_texts(
    queries: Float[Array, "B T H E"], keys: Float[Array, "B T K E"], values: Float[Array, "B T K E"], texts: Texts
) -> Float[Array, "B T H E"]:
    """`softmax(q k^T / sqrt(E)) v` over the earlier tokens of a token's text; what padding gets means nothing."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # no public name leads there

    if not _COUNTS_KEY_HEADS:
        group = queries.shape[2] // keys.shape[2]
        keys, values = jnp.repeat(keys, group, axis=2), jnp.repeat(values, group, axis=2)
    # One place more, in which an end could stand: a text ends where the next one starts, in whatever row.
    starts = jnp.pad(texts.starts, ((0, 0), (0, 1)), constant_values=-1)
    mix: Any = cudnn.dot_product_attention  # what it gives depends on its options
    return mix(
        queries,
        keys,
        values,
        q_seqlen=texts.lengths,
        kv_seqlen=texts.lengths,
        q_offsets=starts,
        kv_offsets=starts,
        scale=queries.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )
