"""Depth pruning: a student that starts as some of its teacher's layers."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from selecttkd_jax._errors import InputError
from selecttkd_jax.models._layer_search import check_keep_count
from selecttkd_jax.models._pretrained import Pretrained


def evenly_spaced_layers(num_layers: int, keep_count: int) -> tuple[int, ...]:
    """`keep_count` of `num_layers` layers at even distances, the first and the last among them.

    Example:
        >>> evenly_spaced_layers(7, 4)
        (0, 2, 4, 6)
    """
    check_keep_count(num_layers, keep_count)
    if keep_count == 1:
        return (0,)
    return tuple(round(index * (num_layers - 1) / (keep_count - 1)) for index in range(keep_count))


def prune_layers(pretrained: Pretrained, keep: Sequence[int]) -> Pretrained:
    """Keeps only the layers in `keep`, in their order; everything else is shared with the original.

    Example:
        >>> from selecttkd_jax.models import DecoderConfig, init_params
        >>> config = DecoderConfig(32, 8, 16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4)
        >>> teacher = Pretrained(config, init_params(config, jax.random.key(0)), hf_config={})
        >>> prune_layers(teacher, evenly_spaced_layers(4, 2)).params["layers"]["mlp"]["gate"]["kernel"].shape
        (2, 8, 16)
    """
    num_layers = pretrained.config.num_layers
    keep = [int(layer) for layer in keep]
    if not keep:
        raise InputError("no layer to keep was named")
    outside = [layer for layer in keep if not 0 <= layer < num_layers]
    if outside:
        raise InputError(f"layers to keep must be from 0 to {num_layers - 1}, got {outside}")
    if any(later <= earlier for earlier, later in zip(keep, keep[1:], strict=False)):
        raise InputError(f"layers to keep must be in rising order and each named once, got {keep}")
    layers = jax.tree.map(lambda stacked: stacked[jnp.asarray(keep)], pretrained.params["layers"])
    hf_config = pretrained.hf_config | {"num_hidden_layers": len(keep)}
    if hf_config.get("layer_types") is not None:
        hf_config["layer_types"] = [hf_config["layer_types"][layer] for layer in keep]
    return replace(
        pretrained,
        config=replace(pretrained.config, num_layers=len(keep)),
        params=pretrained.params | {"layers": layers},
        hf_config=hf_config,
    )
