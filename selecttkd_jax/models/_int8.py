"""Int8 weights for a frozen teacher: a quarter of float32's memory, half of bfloat16's, in the layers' kernels.

Weight-only, symmetric, one scale for each output column of each layer: what Qwix calls weight-only quantisation of
`int8` with channel-wise axes. Activations and products stay in the compute dtype. The embedding, the head, norms and
biases stay as they are: the head's logits are what the student learns from, and the rest is small.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Params
from selecttkd_jax.models._weight_table import WEIGHTS

LARGEST = 127  # not 128, so that a column and its negative have the same scale


def quantize_int8(params: Params) -> Params:
    """The same parameters with every kernel of the layers in int8: `round(W / s)`, `s = max |W| / 127` a column.

    The error of a weight is at most s / 2. `forward` takes the result as it is and turns one layer at a time back into
    the compute dtype.

    Args:
        params: As made by `init_params` or read by `from_pretrained`.

    Returns:
        Parameters in which a kernel `[L, inputs..., outputs...]` is `{"int8", "scale"}`: int8 of the same shape, and
        float32 with 1 for each axis of the inputs. Everything else is shared.

    Example:
        >>> from selecttkd_jax.models import DecoderConfig, init_params
        >>> config = DecoderConfig(32, 8, 16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4)
        >>> teacher = quantize_int8(init_params(config, jax.random.key(0)))
        >>> teacher["layers"]["mlp"]["gate"]["kernel"]["scale"].shape
        (4, 1, 16)
    """
    layers: dict[str, Any] = {part: dict(inner) for part, inner in params["layers"].items()}
    for weight in WEIGHTS:
        if weight.path.endswith(".kernel"):
            _, part, name, _ = weight.path.split(".")
            projection = layers[part][name]
            layers[part][name] = {**projection, "kernel": _quantize(projection["kernel"], weight.num_inputs)}
    return {**params, "layers": layers}


@partial(jax.jit, static_argnames="num_inputs")
def _quantize(kernel: Array, num_inputs: int) -> dict[str, Array]:
    inputs = tuple(range(1, 1 + num_inputs))
    # The division is by the scale as it is stored: what is undone later is what was done here.
    scale = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True).astype(jnp.float32) / LARGEST
    steps = kernel.astype(jnp.float32) / jnp.where(scale > 0, scale, 1.0)
    return {"int8": jnp.round(steps).astype(jnp.int8), "scale": scale}


def dequantize_int8(params: Any, dtype: jnp.dtype) -> Any:
    """A tree of parameters with its int8 kernels as `int8 * scale` in `dtype`; everything else as it is."""
    if not isinstance(params, dict):
        return params
    if params.keys() == {"int8", "scale"}:
        return (params["int8"].astype(jnp.float32) * params["scale"]).astype(dtype)
    return {name: dequantize_int8(inner, dtype) for name, inner in params.items()}
