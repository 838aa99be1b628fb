"""How values are sharded inside a compiled program. Off a mesh (`jax.set_mesh`) each of these does nothing.

What the shardings of parameters and batches leave open, the compiler decides. By itself it gathers a layer's weights
where they are used, forward and backward, and scatters the sum of their gradients; these are the places where it does
worse.
"""

from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selecttkd_jax._array_types import Array
from selecttkd_jax._mesh_axes import BATCH_AXES, HEADS_AXIS, VOCABULARY_AXIS, automatic_axes


def shard_rows(x: Array, axis: int = 0) -> Array:
    """Shards the rows of `x` over the batch axes, and no other axis.

    Args:
        x: Activations or batches; left alone where its rows do not divide.
        axis: Which axis the rows are.
    """
    sizes = automatic_axes()
    names = tuple(name for name in BATCH_AXES if name in sizes)
    if not names or x.shape[axis] % prod(sizes[name] for name in names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, names))


def shard_rows_and_heads(x: Array) -> Array:
    """Shards `x [B, K, ...]`: rows over the batch axes and heads over `tensor`, each where it divides."""
    sizes = automatic_axes()
    names = tuple(name for name in BATCH_AXES if name in sizes)
    rows = names if names and not x.shape[0] % prod(sizes[name] for name in names) else None
    heads = HEADS_AXIS if HEADS_AXIS in sizes and not x.shape[1] % sizes[HEADS_AXIS] else None
    if rows is None and heads is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, heads))


def reshard_to_rows(hidden: Array) -> Array:
    """Reshards rows that were looked up in a table sharded by width over `fsdp`: from width to rows.

    Both shardings are spelled out because the compiler knows no way from one to the other in the gradient, and would
    give every device all of the batch.

    Args:
        hidden: Embeddings [B, T, D], in the dtype in which devices exchange them.
    """
    sizes = automatic_axes()
    width, rows = sizes.get("fsdp", 1), sizes.get("data", 1)
    if width == 1 or hidden.shape[-1] % width or hidden.shape[0] % (rows * width):
        return shard_rows(hidden)
    by_width = PartitionSpec("data" if "data" in sizes else None, None, "fsdp")
    return shard_rows(jax.lax.with_sharding_constraint(hidden, by_width))


def pad_vocabulary(head: Array, axis: int) -> Array:
    """Pads a head with zeros until its vocabulary divides over `tensor`, and shards it so.

    Args:
        head: Head matrix, [D, V] or [V, D].
        axis: Which axis the vocabulary is.
    """
    devices = automatic_axes().get(VOCABULARY_AXIS, 1)
    missing = -head.shape[axis] % devices
    if not missing:
        return head
    head = jnp.pad(head, [(0, missing if place == axis else 0) for place in range(head.ndim)])
    free = PartitionSpec.UNCONSTRAINED
    spec = [VOCABULARY_AXIS if place == axis else free for place in range(head.ndim)]
    return jax.lax.with_sharding_constraint(head, PartitionSpec(*spec))
