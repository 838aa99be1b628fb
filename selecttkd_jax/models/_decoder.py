"""The decoder as pure functions of (config, params): one block, stacked `[L, ...]` and scanned."""

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from selecttkd_jax._array_types import HeadMatrix, HiddenStates, Key, Params
from selecttkd_jax._errors import check_one_of
from selecttkd_jax.models._attention import KEPT, attend, attend_by_kernel, describe_rows
from selecttkd_jax.models._cache import KVCache, write_tokens
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._int8 import dequantize_int8
from selecttkd_jax.models._layers import Block, RMSNorm, set_adapters
from selecttkd_jax.models._rotary import rotary_tables
from selecttkd_jax.models._unstack import unstack_layers
from selecttkd_jax.sharding import reshard_to_rows, shard_rows

REMATS = ("none", "kept", "full", "offload")
"""What of a layer may be kept for the backward pass: see `forward`."""


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
    remat: str = "kept",
    attention: str = "xla",
    keep: Bool[Array, " L"] | None = None,
    watch: Callable[[HiddenStates, HiddenStates], Any] | None = None,
) -> tuple[HiddenStates, Any]:
    """Hidden states after the final norm; `head_logits` turns them into logits.

    A token attends to the keys of its own segment at its own or an earlier position. Segment 0 is padding: nothing
    attends to it, and its own hidden states mean nothing.

    Args:
        config: The decoder.
        params: As made by `init_params` or read by `from_pretrained`, perhaps `attach_adapters` or through
            `quantize_int8`.
        input_ids: Token ids.
        positions: Position of each token in its segment, for rotary embedding and causality.
        segment_ids: Which packed sequence a token belongs to, from 1; 0 for padding.
        cache: Keys and values of earlier tokens. Each row is then one text, whose T tokens follow on each other and
            are written into the slots of their positions; padding stands on the right, and `segment_ids` are not
            looked at.
        dtype: Dtype of activations, to which each layer's parameters are cast when used; None keeps the parameters'.
        remat: What the backward pass finds of each layer and does not recompute, one of `REMATS`: all (`none`), the
            results of the large products (`kept`), those in the host's memory (`offload`), or nothing (`full`).
        attention: How attention is computed where no cache is given: by the plain products (`xla`), or by a kernel,
            from `choose_attention`. A kernel serves rows that are one text from their first slot on (`cudnn`), or
            several (`cudnn_packed`, `splash`), with padding behind, and gives NaN for any other.
        keep: True for each layer that takes part; another one is skipped, and the residual stream passes it unchanged.
            Which ones are kept is data: no other choice compiles anew. None keeps all. Not with a cache.
        watch: What is asked of the residual stream before and behind each layer, `f(before, after)` of `[B, T, D]`.
            Not with a cache.

    Returns:
        Hidden states `[B, T, D]`, and the cache with the new tokens where one was given, `watch`'s answers stacked to
        `[L, ...]` where it was, or None.
    """
    # What all layers share: embedded tokens, rotary tables, and which token attends to which key.
    dtype = params["embedding"].dtype if dtype is None else dtype
    hidden = reshard_to_rows(jnp.take(params["embedding"], input_ids, axis=0).astype(dtype))
    cosine, sine = rotary_tables(config.rotary, config.head_dim, positions)
    rows = describe_rows(positions, segment_ids, attention) if cache is None and attention != "xla" else None
    if cache is None:
        mask = positions[:, None, :] <= positions[:, :, None]
        mask &= (segment_ids[:, None, :] == segment_ids[:, :, None]) & (segment_ids != 0)[:, None, :]
    else:
        mask = jnp.arange(cache.values[0].shape[2])[None, None, :] <= positions[:, :, None]
    graph = _block_graph(config)

    def layer(hidden, layer_params, adapters, cached=None):
        block = set_adapters(nnx.merge(graph, dequantize_int8(layer_params, hidden.dtype)), adapters)
        queries, keys, values = block.attention.project(block.attention_norm(hidden), cosine, sine)
        with jax.named_scope("attention"):
            if rows is not None:
                mixed = attend_by_kernel(queries, keys, values, rows, attention)
            elif cached is None:
                mixed = attend(queries, keys, values, mask)
            else:
                cached = write_tokens(cached, keys, values, positions)
                keys, values = (array.astype(dtype) for array in cached)
                mixed = attend(queries, keys, values, mask, key_axes="BKES", value_axes="BKSE")
        hidden = hidden + block.attention.o(mixed)
        return shard_rows(hidden + block.mlp(block.mlp_norm(hidden))), cached

    if cache is not None:
        params = unstack_layers(params)
        keys, values = [], []
        for index, layer_params in enumerate(params["layers"]):
            adapters = params["adapters"][index] if "adapters" in params else {}
            hidden, cached = layer(hidden, layer_params, adapters, (cache.keys[index], cache.values[index]))
            assert cached is not None  # one went in
            keys.append(cached[0])
            values.append(cached[1])
        return _final_norm(config, params, hidden), KVCache(keys=tuple(keys), values=tuple(values))

    # One layer, scanned over the stacked parameters.
    one_layer = _rematerialize(lambda hidden, xs: layer(hidden, *xs)[0], remat)

    def visit(hidden, xs):
        kept, of_layer = xs
        if kept is None:
            after = one_layer(hidden, of_layer)
        else:
            after = jax.lax.cond(kept, one_layer, lambda hidden, _: hidden, hidden, of_layer)
        return after, None if watch is None else watch(hidden, after)

    hidden, watched = jax.lax.scan(visit, hidden, (keep, (params["layers"], params.get("adapters", {}))))
    return _final_norm(config, params, hidden), watched


def _rematerialize(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The layer, of which a scan's backward pass recomputes what `remat` does not keep.

    Cheap work between the large products is better recomputed than kept: it takes less time than writing it out.
    """
    check_one_of("remat", remat, REMATS)
    if remat == "none":
        return layer
    if remat == "offload":
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[KEPT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = jax.checkpoint_policies.save_only_these_names(*([KEPT] if remat == "kept" else []))
    # Inside a scan nothing is shared, hence no prevent_cse.
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


def _final_norm(config: DecoderConfig, params: Params, hidden: HiddenStates) -> HiddenStates:
    graph = nnx.split(nnx.eval_shape(lambda: RMSNorm(config.hidden_size, config.norm_eps, dtype=jnp.float32)))[0]
    return nnx.merge(graph, params["final_norm"])(hidden)


def head(config: DecoderConfig, params: Params) -> HeadMatrix:
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
