"""Where values lie inside a compiled program. Off a mesh (`jax.set_mesh`) each of these does nothing.

What the shardings of parameters and batches leave open, the compiler decides. By itself it gathers a layer's weights
where they are used, forward and backward, and scatters the sum of their gradients; these are the places where it does
worse.
"""

from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selecttkd_jax.array_types import Array
from selecttkd_jax.mesh_axes import BATCH_AXES, VOCABULARY_AXIS, automatic_axes


def divided_by_rows(x: Array, axis: int = 0) -> Array:
    """Keeps the rows of `x` divided over the batch axes, and every other axis whole.

    Args:
        x: Activations or batches; left alone where its rows do not divide.
        axis: Which axis the rows are.
    """
    sizes = automatic_axes()
    names = tuple(name for name in BATCH_AXES if name in sizes)
    if not names or x.shape[axis] % prod(sizes[name] for name in names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, names))


def exchanged(hidden: Array) -> Array:
    """Rows of a table that is divided by width over `fsdp`: first by width, as they are found, then by rows.

    Both are spelled out because the compiler knows no way from one to the other in the gradient, and would give every
    device the whole batch.

    Args:
        hidden: [B, T, D], in the dtype in which it is exchanged.
    """
    sizes = automatic_axes()
    width, rows = sizes.get("fsdp", 1), sizes.get("data", 1)
    if width == 1 or hidden.shape[-1] % width or hidden.shape[0] % (rows * width):
        return divided_by_rows(hidden)
    by_width = PartitionSpec("data" if "data" in sizes else None, None, "fsdp")
    return divided_by_rows(jax.lax.with_sharding_constraint(hidden, by_width))


def padded_vocabulary(head: Array, axis: int) -> Array:
    """A head whose vocabulary divides over `tensor`, with columns of zeros behind the real ones where it did not."""
    devices = automatic_axes().get(VOCABULARY_AXIS, 1)
    missing = -head.shape[axis] % devices
    if not missing:
        return head
    head = jnp.pad(head, [(0, missing if place == axis else 0) for place in range(head.ndim)])
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*(VOCABULARY_AXIS if place == axis else free for place in range(head.ndim)))
    return jax.lax.with_sharding_constraint(head, spec)
