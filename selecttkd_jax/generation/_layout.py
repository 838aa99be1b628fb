"""A model's weights as decoding reads them."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax import models
from selecttkd_jax._array_types import Array, Params
from selecttkd_jax.sharding import PRESETS


def default_dtype(mesh: Mesh) -> jnp.dtype:
    """bfloat16, and float32 on a CPU, where bfloat16 is slower."""
    return jnp.dtype(jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16)


def lay_out(
    mesh: Mesh,
    config: models.DecoderConfig,
    params: Params,
    dtype: jnp.dtype | None = None,
    *,
    consume: bool = False,
) -> Params:
    """Weights in the dtype for decoding, layer by layer, whole on every device but for the axes of `tensor`.

    Nothing is then gathered, cast or copied for each token. The result is for `decode` and `generate`; int8 kernels
    stay int8, and are placed as they are.

    Args:
        mesh: Where they are placed.
        config: The model's shape.
        params: Its parameters.
        dtype: None takes `default_dtype`.
        consume: Delete each stack of `params` once its layers are taken out, so that there are never two copies of
            more than one of them.
    """
    shardings = models.shardings(config, mesh, PRESETS["tensor"])
    if jax.tree.structure(params) != jax.tree.structure(shardings):
        return models.unstack_layers(params)
    dtype = default_dtype(mesh) if dtype is None else jnp.dtype(dtype)
    stacks, tree = jax.tree.flatten(params["layers"])
    layers = []
    for stack, sharding in zip(stacks, jax.tree.leaves(shardings["layers"]), strict=True):
        one_layer = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
        layers.append(_take_layers(stack.shape[0], dtype, one_layer)(stack))
        if consume:
            stack.delete()
    rest = {name: params[name] for name in params if name != "layers"}
    rest = jax.tree.map(lambda leaf, sharding: _cast(dtype, sharding)(leaf), rest, {n: shardings[n] for n in rest})
    return {**rest, "layers": tuple(tree.unflatten(leaves) for leaves in zip(*layers, strict=True))}


# Compiled functions are kept, since a jit of a new function compiles anew.
@lru_cache(maxsize=256)
def _take_layers(count: int, dtype: jnp.dtype, sharding: NamedSharding) -> Callable[[Array], tuple[Array, ...]]:
    def take(stack: Array) -> tuple[Array, ...]:
        return tuple(stack[layer].astype(dtype) for layer in range(count))

    return jax.jit(take, out_shardings=(sharding,) * count)


@lru_cache(maxsize=256)
def _cast(dtype: jnp.dtype, sharding: NamedSharding) -> Callable[[Array], Array]:
    return jax.jit(lambda leaf: leaf.astype(dtype), out_shardings=sharding)
