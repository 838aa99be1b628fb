"""Safetensors in and out: tensor by tensor, from and to the stacked parameters."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from safetensors.numpy import save_file

from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._weight_table import Weight, get_leaf, list_weights, nest_leaves
from selecttkd_jax.models.files._json import write_json
from selecttkd_jax.models.files._layouts import convert_to_disk, list_tensors, read_from_disk, shape_on_disk
from selecttkd_jax.models.files._shards import EMBEDDING, HEAD, INDEX_FILE, SINGLE_FILE, Stored, check_tensors
from selecttkd_jax.sharding import gather_to_host, make_array_from_slices

MAX_SHARD_BYTES = 5 * 10**9
ROWS_AT_A_TIME = 4096


def read_params(config: DecoderConfig, directory: Path, dtype: jnp.dtype, shardings: Any = None) -> Params:
    """The parameters in a directory, converted to `dtype` while they are read, one tensor at a time.

    With `shardings`, a tree like the parameters', each process reads only what its own devices hold.

    Raises:
        InputError: As `check_tensors`; or a tensor holds a number that is not finite, on disk or as `dtype`.
    """
    places = check_tensors(config, directory)
    _check_tied_head(config, places)
    tree = {}
    for weight in list_weights(config):
        sharding = None if shardings is None else get_leaf(shardings, weight)
        tree[weight.path] = _read_weight(config, weight, places, dtype, sharding)
    return nest_leaves(tree)


def check_finite(tensor: np.ndarray, name: str, source: str | Path) -> np.ndarray:
    """The tensor itself.

    Raises:
        InputError: It holds NaN or an infinity.
    """
    if not _is_finite(tensor):
        raise InputError(f"{source}: tensor {name} holds NaN or infinity; fetch the file again, or repair the model")
    return tensor


def check_cast(tensor: np.ndarray, before: np.dtype, name: str, source: str | Path) -> np.ndarray:
    """The tensor itself.

    Raises:
        InputError: It was cast from `before`, and a number was too large for it.
    """
    if jnp.finfo(tensor.dtype).max < jnp.finfo(before).max and not _is_finite(tensor):
        raise InputError(
            f"{source}: tensor {name} holds a number too large for {tensor.dtype.name}; take float32 or bfloat16"
        )
    return tensor


def _is_finite(tensor: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        # A sum is not finite if a term is not, needs no array of flags, and is looked into only where it overflows.
        return bool(np.isfinite(tensor.sum(dtype=np.float32)) or np.isfinite(tensor).all())


def _read_weight(
    config: DecoderConfig, weight: Weight, places: dict[str, Stored], dtype: jnp.dtype, sharding: Sharding | None
) -> jax.Array:
    def read_tensor(layer: int | None, wanted: tuple[slice, ...]) -> np.ndarray:
        place = places[weight.hf_name.format(layer)]
        return check_finite(read_from_disk(weight, config, wanted, place.read), place.name, place.path)

    def convert(target: np.ndarray, layer: int | None, tensor: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            target[...] = tensor
        place = places[weight.hf_name.format(layer)]
        check_cast(target, tensor.dtype, place.name, place.path)

    def read(wanted: tuple[slice, ...]) -> np.ndarray:
        if not weight.per_layer:
            tensor = read_tensor(None, wanted)
            whole = np.empty(tensor.shape, dtype)
            convert(whole, None, tensor)
            return whole
        # A transposing copy is slow across the stack but quick within one layer, so each is transposed on its own.
        layers = range(config.num_layers)[wanted[0]]
        stacked: np.ndarray | None = None
        for row, layer in enumerate(layers):
            tensor = read_tensor(layer, wanted[1:])
            if stacked is None:
                stacked = np.empty((len(layers), *tensor.shape), dtype)
            convert(stacked[row], layer, tensor)
        assert stacked is not None
        return stacked

    shape = weight.shape(config)
    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    return make_array_from_slices(shape, sharding, read)


def _check_tied_head(config: DecoderConfig, places: dict[str, Stored]) -> None:
    if not config.tied_head or HEAD not in places:
        return
    both = (places[HEAD], places[EMBEDDING])
    for start in range(0, config.vocab_size, ROWS_AT_A_TIME):
        rows = (slice(start, min(start + ROWS_AT_A_TIME, config.vocab_size)), slice(None))
        head, embedding = (check_finite(place.read(rows), place.name, place.path) for place in both)
        if not np.array_equal(head, embedding):
            raise InputError(
                f"{places[HEAD].path}: lm_head.weight differs from the embedding, but config.json says it is tied"
            )


def write_params(config: DecoderConfig, params: Params, directory: Path, dtype: jnp.dtype | None = None) -> None:
    """Writes parameters as safetensors under Hugging Face names; `dtype` None keeps each one's own."""
    itemsize = np.dtype(dtype if dtype is not None else params["embedding"].dtype).itemsize
    sizes = {name: prod(shape_on_disk(weight, config)) * itemsize for name, (weight, _) in list_tensors(config).items()}
    write_tensors(sizes, _make_gatherer(config, params, dtype), directory)


def gather_params(config: DecoderConfig, params: Params, dtype: jnp.dtype | None = None) -> None:
    """This process's part in another one's `write_params`: helps to gather each tensor, and keeps none."""
    gather = _make_gatherer(config, params, dtype)
    for name in list_tensors(config):
        gather(name)


def _make_gatherer(config: DecoderConfig, params: Params, dtype: jnp.dtype | None) -> Callable[[str], np.ndarray]:
    tensors = list_tensors(config)

    def gather(name: str) -> np.ndarray:
        weight, layer = tensors[name]
        array = gather_to_host(get_leaf(params, weight), layer)
        return convert_to_disk(weight, config, array if dtype is None else array.astype(dtype))

    return gather


def write_tensors(
    sizes: dict[str, int],
    read: Callable[[str], np.ndarray],
    directory: Path,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes tensors to one safetensors file, or to several with an index where they exceed `max_shard_bytes`.

    Args:
        sizes: Bytes of each tensor.
        read: Gives a tensor by name; called shard by shard.
        directory: Where to write.
        max_shard_bytes: Largest size of one file, 5 GB unless given.
    """
    limit = MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # The writer takes the bytes as they are in memory, so a transposed view would come out scrambled.
        contiguous = {name: np.ascontiguousarray(read(name)) for name in names}
        save_file(contiguous, directory / file, metadata={"format": "pt"})
        # The writer makes files that only their owner may read; give them the permissions of their directory.
        (directory / file).chmod(directory.stat().st_mode & 0o666)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / INDEX_FILE, index)
