"""Splash attention: the TPU's kernel, causal and by segments.

It wants every axis of a mesh to itself: rows are sharded over the batch axes and heads over `tensor`, and no device
needs what another one has.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from selecttkd_jax._mesh_axes import BATCH_AXES, HEADS_AXIS, automatic_axes

# For tests on a CPU, which has no such kernel: its steps are then taken by JAX's own operations.
INTERPRETED = False
# Sizes of the blocks that the kernel works on, the best first; a row's length is a multiple of one.
_BLOCKS = (512, 256, 128)
SMALLEST_BLOCK = _BLOCKS[-1]


def are_texts(positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Bool[Array, " B"]:
    """Rows of texts that follow on each other, each from its first token on, with padding behind them.

    Then a token's own segment up to its own slot is what it may attend to.
    """
    before, after = segment_ids[:, :-1], segment_ids[:, 1:]
    goes_on = (after == before) & (positions[:, 1:] == positions[:, :-1] + 1)
    begins = (after > before) & (positions[:, 1:] == 0) & (before != 0)
    first = (segment_ids[:, 0] == 0) | (positions[:, 0] == 0)
    return first & jnp.all(goes_on | begins | (after == 0), axis=1)


def attend_in_segments(
    queries: Float[Array, "B T H E"],
    keys: Float[Array, "B T K E"],
    values: Float[Array, "B T K E"],
    segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T H E"]:
    """`softmax(q k^T / sqrt(E)) v` over the earlier tokens of a token's segment; what padding gets means nothing."""
    attend = partial(_attend_on_device, queries.shape[-1] ** -0.5)
    axes = automatic_axes()
    if not axes:
        return attend(queries, keys, values, segment_ids)
    rows = tuple(axis for axis in BATCH_AXES if axis in axes)
    heads = PartitionSpec(rows, None, HEADS_AXIS if HEADS_AXIS in axes else None)
    whole = jax.shard_map(attend, in_specs=(heads, heads, heads, PartitionSpec(rows)), out_specs=heads, check_vma=False)
    return whole(queries, keys, values, segment_ids)


def _attend_on_device(scale: float, queries: Array, keys: Array, values: Array, segment_ids: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = queries.shape[1:3]
    block = next(size for size in _BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel: Any = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        interpret=INTERPRETED,
    )

    def of_a_row(queries: Array, keys: Array, values: Array, segments: Array) -> Array:
        return kernel(queries, keys, values, segment_ids=splash.SegmentIds(segments, segments))

    queries, keys, values = (array.swapaxes(1, 2) for array in (queries * scale, keys, values))
    return jax.vmap(of_a_row)(queries, keys, values, segment_ids).swapaxes(1, 2)
