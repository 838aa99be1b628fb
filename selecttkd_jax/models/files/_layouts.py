"""Tensors on disk and parameters of ours: shapes, and the change of layout, which follows from the table's axes."""

from collections.abc import Callable
from math import prod

import numpy as np

from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._weight_table import Weight, axis_sizes, list_weights


def list_tensors(config: DecoderConfig) -> dict[str, tuple[Weight, int | None]]:
    """Every tensor's Hugging Face name, with its row of the table and its layer (None outside the layers)."""
    tensors: dict[str, tuple[Weight, int | None]] = {}
    for weight in list_weights(config):
        layers = range(config.num_layers) if weight.per_layer else [None]
        tensors.update({weight.hf_name.format(layer): (weight, layer) for layer in layers})
    return tensors


def shape_on_disk(weight: Weight, config: DecoderConfig) -> tuple[int, ...]:
    """Shape of the tensor (of one layer's) on disk."""
    sizes = axis_sizes(config)
    return tuple(prod(sizes[axis] for axis in group) for group in weight.hf_axes.split(","))


def read_from_disk(
    weight: Weight,
    config: DecoderConfig,
    wanted: tuple[slice, ...],
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> np.ndarray:
    """Part of one tensor, in our layout; no more of it is read than a few contiguous ranges that hold it.

    Args:
        weight: The tensor's row of the table.
        config: The decoder.
        wanted: A slice of each of our axes, without L.
        read: Gives a block of the tensor on disk, from a slice of each of its axes.
    """
    sizes, asked = axis_sizes(config), dict(zip(weight.axes, wanted, strict=True))
    block, on_disk = dict(sizes), []
    for outer, *inner in weight.hf_axes.split(","):
        # Of axes flattened together, a range of the outer one is contiguous; the inner ones are cut after reading.
        start, stop, _ = asked[outer].indices(sizes[outer])
        stride = prod(sizes[axis] for axis in inner)
        on_disk.append(slice(start * stride, stop * stride))
        block[outer], asked[outer] = stop - start, slice(None)
    flat = weight.hf_axes.replace(",", "")
    tensor = read(tuple(on_disk)).reshape([block[axis] for axis in flat])
    return tensor.transpose([flat.index(axis) for axis in weight.axes])[tuple(asked[axis] for axis in weight.axes)]


def convert_to_disk(weight: Weight, config: DecoderConfig, tensor: np.ndarray) -> np.ndarray:
    """One tensor of ours (of one layer's) in its layout on disk: the inverse of `read_from_disk`."""
    flat = weight.hf_axes.replace(",", "")
    return tensor.transpose([weight.axes.index(axis) for axis in flat]).reshape(shape_on_disk(weight, config))
