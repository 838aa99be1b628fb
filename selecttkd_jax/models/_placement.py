"""How a decoder's parameters are sharded over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._weight_table import list_weights, nest_leaves
from selecttkd_jax.sharding import Rules, parameter_shardings


def logical_axes(config: DecoderConfig) -> dict[str, Any]:
    """The axis letters of each parameter, as one string: a tree like the parameters'.

    Example:
        >>> config = DecoderConfig(32, 8, 16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4)
        >>> logical_axes(config)["layers"]["mlp"]["gate"]["kernel"]
        'LDF'
    """
    return nest_leaves({weight.path: "L" * weight.per_layer + weight.axes for weight in list_weights(config)})


def shardings(config: DecoderConfig, mesh: Mesh, rules: Rules) -> dict[str, Any]:
    """The sharding of each parameter, for `from_pretrained`, `jax.device_put` or `out_shardings`.

    Args:
        config: The decoder.
        mesh: From `sharding.make_mesh`.
        rules: Axis letter -> mesh axis, such as `sharding.PRESETS["fsdp"]`.

    Returns:
        A tree of NamedSharding like the parameters'.

    Raises:
        InputError: As `sharding.parameter_shardings`.
    """
    shapes = {weight.path: jax.ShapeDtypeStruct(weight.shape(config), jnp.float32) for weight in list_weights(config)}
    return parameter_shardings(mesh, rules, logical_axes(config), nest_leaves(shapes))
