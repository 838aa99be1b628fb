"""Layers as trees of their own."""

import jax

from selecttkd_jax._array_types import Params


def unstack_layers(params: Params) -> Params:
    """The same parameters with `layers` (and `adapters`) as one tree a layer in place of arrays `[L, ...]`.

    A loop over stacked layers copies each layer's weights out of the stack before a product reads them. That is nothing
    beside a training step, and three times the work of a decoded token, which does little else than read weights.
    `forward` with a cache takes both forms; the program of this one grows with depth.

    Example:
        >>> from selecttkd_jax.models import DecoderConfig, init_params
        >>> config = DecoderConfig(32, 8, 16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4)
        >>> layers = unstack_layers(init_params(config, jax.random.key(0)))["layers"]
        >>> len(layers), layers[0]["mlp"]["gate"]["kernel"].shape
        (4, (8, 16))
    """
    stacked = {name: params[name] for name in ("layers", "adapters") if not isinstance(params.get(name, ()), tuple)}
    return {**params, **{name: _split(tree) for name, tree in stacked.items()}}


def _split(tree: Params) -> tuple[Params, ...]:
    count = jax.tree.leaves(tree)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree) for layer in range(count))
