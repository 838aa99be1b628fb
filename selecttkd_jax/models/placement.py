"""Where a decoder's parameters lie on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.weight_table import tree_of, weights_of
from selecttkd_jax.sharding import Rules, parameter_shardings


def logical_axes(config: DecoderConfig) -> dict[str, Any]:
    """The axis letters of each parameter, as one string: a tree of the parameters' shape.

    Example:
        >>> logical_axes(config)["layers"]["mlp"]["gate"]["kernel"]  # doctest: +SKIP
        'LDF'
    """
    return tree_of({weight.path: "L" * weight.per_layer + weight.axes for weight in weights_of(config)})


def shardings(config: DecoderConfig, mesh: Mesh, rules: Rules) -> dict[str, Any]:
    """Where each parameter lies: a tree of NamedSharding, for `from_pretrained`, `jax.device_put` or `out_shardings`.

    Args:
        config: The decoder.
        mesh: From `sharding.make_mesh`.
        rules: Axis letter -> mesh axis, such as `sharding.PRESETS["fsdp"]`.

    Raises:
        InputError: As `sharding.parameter_shardings`.
    """
    shapes = {weight.path: jax.ShapeDtypeStruct(weight.shape(config), jnp.float32) for weight in weights_of(config)}
    return parameter_shardings(mesh, rules, logical_axes(config), tree_of(shapes))
