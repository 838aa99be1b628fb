"""The key/value cache of a decoder."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selecttkd_jax._errors import check_at_least
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.sharding import shard_rows_and_heads

LayerCache = tuple[Float[Array, "B K E S"], Float[Array, "B K S E"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values already computed. A row is one text, and its token of position p is in slot p.

    Each layer has arrays of its own, whose axes stand as the two products of one token's attention read them: a decode
    loop copies, pads or transposes none of them. (On two CPU cores, keys with E last take six times as long.)

    Attributes:
        keys: Rotated keys of each layer.
        values: Values of each layer.
    """

    keys: tuple[Float[Array, "B K E S"], ...]
    values: tuple[Float[Array, "B K S E"], ...]


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache of `length` slots for `batch` rows."""
    check_at_least("batch", batch, 1)
    check_at_least("length", length, 1)
    keys = (batch, config.num_kv_heads, config.head_dim, length)
    values = (batch, config.num_kv_heads, length, config.head_dim)
    return KVCache(
        keys=tuple(shard_rows_and_heads(jnp.zeros(keys, dtype)) for _ in range(config.num_layers)),
        values=tuple(shard_rows_and_heads(jnp.zeros(values, dtype)) for _ in range(config.num_layers)),
    )


def write_tokens(
    cached: LayerCache, keys: Float[Array, "B T K E"], values: Float[Array, "B T K E"], positions: Int[Array, "B T"]
) -> LayerCache:
    """One layer's cache with the keys and values of T tokens that follow on each other, each row at its own slots."""

    def write(row, new, start, axis):
        return jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=axis)

    write = jax.vmap(write, in_axes=(0, 0, 0, None))
    old_keys, old_values = cached
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    return (
        write(old_keys, keys.astype(old_keys.dtype), positions[:, 0], 2),
        write(old_values, values.astype(old_values.dtype), positions[:, 0], 1),
    )
