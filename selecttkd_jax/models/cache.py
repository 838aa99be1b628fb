"""The key/value cache of a decoder: every layer's keys and values in one pytree."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selecttkd_jax.checks import check_at_least
from selecttkd_jax.models.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values already computed. All rows share one write slot, so prompts are padded on the left.

    Attributes:
        keys: rotated keys.
        values: values.
        positions: position of the token in each slot.
        segment_ids: segment of the token in each slot; 0 for padding and for slots not yet written.
        next_slot: where the next token goes.
    """

    keys: Float[Array, "L B S K E"]
    values: Float[Array, "L B S K E"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    next_slot: Int[Array, ""]


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache of `length` slots for `batch` rows."""
    check_at_least("batch", batch, 1)
    check_at_least("length", length, 1)
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        positions=jnp.zeros((batch, length), jnp.int32),
        segment_ids=jnp.zeros((batch, length), jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )
