"""The decoder as pure functions of (config, params): one block, stacked `[L, ...]` and scanned."""

from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from selecttkd_jax.array_types import Head, HiddenStates, Key, Params
from selecttkd_jax.models.cache import KVCache
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.int8 import dequantized
from selecttkd_jax.models.layers import KEPT, Block, RMSNorm, attach, attend
from selecttkd_jax.models.rotary import rotary_tables
from selecttkd_jax.sharding import divided_by_rows, exchanged


@partial(jax.jit, static_argnames=("config", "dtype"))
def init_params(config: DecoderConfig, key: Key, dtype: jnp.dtype = jnp.float32) -> Params:
    """Fresh parameters: kernels and embedding normal with `config.init_scale`, biases zero, norm scales one."""
    embedding_key, head_key, layers_key = jax.random.split(key, 3)

    def one_layer(layer_key):
        return nnx.to_pure_dict(nnx.state(Block(config, dtype=dtype, rngs=nnx.Rngs(layer_key)), nnx.Param))

    draw = nnx.initializers.normal(config.init_scale)
    params = {
        "embedding": draw(embedding_key, (config.vocab_size, config.hidden_size), dtype),
        "layers": jax.vmap(one_layer)(jax.random.split(layers_key, config.num_layers)),
        "final_norm": {"scale": jnp.ones((config.hidden_size,), dtype)},
    }
    if not config.tied_head:
        params["head"] = draw(head_key, (config.hidden_size, config.vocab_size), dtype)
    return params


@lru_cache(maxsize=32)
def _block_graph(config: DecoderConfig) -> Any:
    """The block without its parameters: `nnx.merge(graph, one_layer_params)` gives a callable block."""
    block = nnx.eval_shape(lambda: Block(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return nnx.split(block, nnx.Param)[0]


def forward(
    config: DecoderConfig,
    params: Params,
    input_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: KVCache | None = None,
    *,
    dtype: jnp.dtype | None = None,
    remat: bool = False,
) -> tuple[HiddenStates, KVCache | None]:
    """Hidden states after the final norm; `head_logits` turns them into logits.

    A token attends to the keys of its own segment at its own or an earlier position. Segment 0 is padding: nothing
    attends to it, and its own hidden states mean nothing.

    Args:
        config: the decoder.
        params: as made by `init_params` or read by `from_pretrained`, perhaps `with_adapters` or through
            `quantize_int8`.
        input_ids: token ids.
        positions: position of each token in its segment, for rotary embedding and causality.
        segment_ids: which packed sequence a token belongs to, from 1; 0 for padding.
        cache: keys and values of earlier tokens; the new ones are written at `cache.next_slot`, which must leave room
            for T tokens.
        dtype: dtype of activations, to which each layer's parameters are cast when used; None keeps the parameters'.
        remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
        Hidden states `[B, T, D]` and the cache with the new tokens, or None where none was given.
    """
    dtype = params["embedding"].dtype if dtype is None else dtype
    hidden = exchanged(jnp.take(params["embedding"], input_ids, axis=0).astype(dtype))
    cosine, sine = rotary_tables(config.rotary, config.head_dim, positions)
    if cache is not None:
        cache = replace(
            cache,
            positions=jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.next_slot, axis=1),
            segment_ids=jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.next_slot, axis=1),
        )
    key_positions, key_segments = (positions, segment_ids) if cache is None else (cache.positions, cache.segment_ids)
    mask = key_positions[:, None, :] <= positions[:, :, None]
    mask &= (key_segments[:, None, :] == segment_ids[:, :, None]) & (key_segments != 0)[:, None, :]
    graph = _block_graph(config)

    def layer(carry, xs):
        hidden, cached, index = carry
        layer_params, adapters = xs
        block = attach(nnx.merge(graph, dequantized(layer_params, hidden.dtype)), adapters)
        queries, keys, values = block.attention.queries_keys_values(block.attention_norm(hidden), cosine, sine)
        if cache is not None:
            cached = tuple(
                jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), (index, 0, cache.next_slot, 0, 0))
                for whole, new in zip(cached, (keys, values), strict=True)
            )
            keys, values = (
                jax.lax.dynamic_index_in_dim(whole, index, keepdims=False).astype(dtype) for whole in cached
            )
        hidden = hidden + block.attention.o(attend(queries, keys, values, mask))
        hidden = divided_by_rows(hidden + block.mlp(block.mlp_norm(hidden)))
        return (hidden, cached, index + 1), None

    # The backward pass keeps the results of the large products (nothing with remat) and recomputes the cheap work in
    # between: less memory, and less time than writing it out. Inside a scan nothing is shared, hence no prevent_cse.
    kept = jax.checkpoint_policies.save_only_these_names(*(() if remat else (KEPT,)))
    layer = jax.checkpoint(layer, policy=kept, prevent_cse=False)
    cached = None if cache is None else (cache.keys, cache.values)
    xs = (params["layers"], params.get("adapters", {}))
    (hidden, cached, _), _ = jax.lax.scan(layer, (hidden, cached, jnp.int32(0)), xs)
    if cache is not None:
        keys, values = cached
        cache = replace(cache, keys=keys, values=values, next_slot=cache.next_slot + input_ids.shape[1])
    return _final_norm(config, params, hidden), cache


def _final_norm(config: DecoderConfig, params: Params, hidden: HiddenStates) -> HiddenStates:
    graph = nnx.split(nnx.eval_shape(lambda: RMSNorm(config.hidden_size, config.norm_eps, dtype=jnp.float32)))[0]
    return nnx.merge(graph, params["final_norm"])(hidden)


def head(config: DecoderConfig, params: Params) -> Head:
    """The head matrix `[D, V]`: the embedding's transpose when tied."""
    return params["embedding"].T if config.tied_head else params["head"]


def stored_head(config: DecoderConfig, params: Params) -> Array:
    """The head matrix as it is stored: `[V, D]` when tied, which is the embedding, else `[D, V]`."""
    return params["embedding"] if config.tied_head else params["head"]


def head_logits(config: DecoderConfig, params: Params, hidden: HiddenStates) -> Float[Array, "B T V"]:
    """Logits of hidden states: operands in hidden's dtype, sums and result in float32."""
    matrix = head(config, params).astype(hidden.dtype)
    return jnp.einsum("BTD,DV->BTV", hidden, matrix, preferred_element_type=jnp.float32)


def count_params(params_or_config: Params | DecoderConfig) -> int:
    """Number of parameters; a tied head counts once."""
    if isinstance(params_or_config, DecoderConfig):
        params_or_config = jax.eval_shape(partial(init_params, params_or_config), jax.random.key(0))
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params_or_config))
