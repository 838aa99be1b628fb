"""Safetensors in and out: checked from their headers first, then read tensor by tensor into the stacked parameters."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.location import read_json
from selecttkd_jax.models.weight_table import Weight, at, tensors_of, tree_of, weights_of
from selecttkd_jax.sharding import array_from_slices, whole_on_host

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MAX_SHARD_BYTES = 5 * 10**9
ROWS_AT_A_TIME = 4096


def check_tensors(config: DecoderConfig, directory: Path) -> dict[str, Path]:
    """Compares the headers of a directory's safetensors files with what `config` asks for; reads no weights.

    Returns:
        The file of each tensor.

    Raises:
        InputError: naming the first tensor that is missing, not known, of the wrong shape or not floating point, or the
            file that is missing or torn.
    """
    expected = tensors_of(config)
    files: dict[str, Path] = {}
    for path, names in _shards(directory).items():
        header = _header(path)
        for name in sorted(names if names is not None else header):
            if name not in header:
                raise InputError(f"{path} has no tensor {name}, though {INDEX_FILE} says so")
            shape, dtype = header[name]
            if config.tied_head and name == "lm_head.weight":
                # Some writers store the tied head a second time; read_params makes sure that it is the same.
                files[name] = path
                continue
            if name.endswith("rotary_emb.inv_freq"):
                # Written by old versions of transformers; computed from the config.
                continue
            if name not in expected:
                raise InputError(f"{path}: unknown tensor {name}; config.json does not describe this model")
            weight, _ = expected[name]
            if shape != weight.hf_shape(config):
                raise InputError(
                    f"{path}: tensor {name} has shape {shape}, but config.json asks for {weight.hf_shape(config)}"
                )
            if dtype not in FLOAT_DTYPES:
                raise InputError(
                    f"{path}: tensor {name} has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}; quantised "
                    "weights have to be converted first"
                )
            files[name] = path
    missing = [name for name in expected if name not in files]
    if missing:
        raise InputError(
            f"{directory}: missing {len(missing)} of {len(expected)} tensors, the first being {missing[0]}"
        )
    return files


def _shards(directory: Path) -> dict[Path, list[str] | None]:
    """The safetensors files to read, each with the tensors the index puts there (None: all it has)."""
    if (directory / INDEX_FILE).is_file():
        weight_map = read_json(directory / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{directory / INDEX_FILE} has no weight_map")
        shards: dict[Path, list[str] | None] = {}
        for name, file in weight_map.items():
            shards.setdefault(directory / str(file), []).append(name)  # type: ignore[union-attr]
        return shards
    if (directory / SINGLE_FILE).is_file():
        return {directory / SINGLE_FILE: None}
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: None}
    if found:
        raise InputError(f"{directory} has {len(found)} safetensors files but no {INDEX_FILE}")
    pickled = sorted(directory.glob("*.bin"))
    hint = f"; {pickled[0].name} is a pickle, which is never read: save the model as safetensors" if pickled else ""
    raise InputError(f"{directory} has no *.safetensors file{hint}")


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor in a safetensors file; opening it also compares its length with the header."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, though {INDEX_FILE} names it")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: (tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from None


def read_params(config: DecoderConfig, directory: Path, dtype: jnp.dtype, shardings: Any = None) -> Params:
    """The parameters in a directory, converted to `dtype` while they are read, one tensor at a time.

    With `shardings`, a tree of the parameters' shape, each process reads only what its own devices hold.
    """
    files = check_tensors(config, directory)
    _check_tied_head(config, files)
    tree = {}
    for weight in weights_of(config):
        sharding = None if shardings is None else at(shardings, weight)
        tree[weight.path] = _read_weight(config, weight, files, dtype, sharding)
    return tree_of(tree)


def _read_weight(
    config: DecoderConfig, weight: Weight, files: dict[str, Path], dtype: jnp.dtype, sharding: Sharding | None
) -> jax.Array:
    def read_tensor(layer: int | None, wanted: tuple[slice, ...]) -> np.ndarray:
        name = weight.hf_name.format(layer)
        return weight.part_from_hf(config, wanted, lambda part: _tensor(files[name], name, part))

    def read(wanted: tuple[slice, ...]) -> np.ndarray:
        if not weight.per_layer:
            return np.ascontiguousarray(read_tensor(None, wanted).astype(dtype, copy=False))
        # A transposing copy is slow across the stack but quick within one layer, so each is laid out on its own.
        layers = range(config.num_layers)[wanted[0]]
        stacked: np.ndarray | None = None
        for row, layer in enumerate(layers):
            tensor = read_tensor(layer, wanted[1:])
            if stacked is None:
                stacked = np.empty((len(layers), *tensor.shape), dtype)
            stacked[row] = tensor
        assert stacked is not None
        return stacked

    shape = weight.shape(config)
    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    return array_from_slices(shape, sharding, read)


def _check_tied_head(config: DecoderConfig, files: dict[str, Path]) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.tied_head or head not in files:
        return
    for start in range(0, config.vocab_size, ROWS_AT_A_TIME):
        rows = (slice(start, min(start + ROWS_AT_A_TIME, config.vocab_size)), slice(None))
        if not np.array_equal(_tensor(files[head], head, rows), _tensor(files[embedding], embedding, rows)):
            raise InputError(
                f"{files[head]}: lm_head.weight differs from the embedding, but config.json says it is tied"
            )


def _tensor(path: Path, name: str, part: tuple[slice, ...]) -> np.ndarray:
    # Opened anew for each tensor: pages of the file that were read stay in memory for as long as it is open.
    with safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[part]


def write_params(config: DecoderConfig, params: Params, directory: Path, dtype: jnp.dtype | None = None) -> None:
    """Writes parameters as safetensors under Hugging Face names; `dtype` None keeps each one's own."""
    itemsize = np.dtype(dtype if dtype is not None else params["embedding"].dtype).itemsize
    sizes = {name: prod(weight.hf_shape(config)) * itemsize for name, (weight, _) in tensors_of(config).items()}
    write_tensors(sizes, _gatherer(config, params, dtype), directory)


def gather_params(config: DecoderConfig, params: Params, dtype: jnp.dtype | None = None) -> None:
    """This process's part in another one's `write_params`: helps to gather each tensor, and keeps none."""
    gather = _gatherer(config, params, dtype)
    for name in tensors_of(config):
        gather(name)


def _gatherer(config: DecoderConfig, params: Params, dtype: jnp.dtype | None) -> Callable[[str], np.ndarray]:
    tensors = tensors_of(config)

    def gather(name: str) -> np.ndarray:
        weight, layer = tensors[name]
        array = whole_on_host(at(params, weight), layer)
        return weight.to_hf(config, array if dtype is None else array.astype(dtype))

    return gather


def write_tensors(
    sizes: dict[str, int],
    read: Callable[[str], np.ndarray],
    directory: Path,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes tensors to one safetensors file, or to several with an index where they exceed `max_shard_bytes`.

    Args:
        sizes: bytes of each tensor.
        read: gives a tensor by name; called shard by shard.
        directory: where to write.
        max_shard_bytes: largest size of one file, 5 GB unless given.
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
        # The writer takes the bytes as they lie in memory, so a transposed view would come out scrambled.
        contiguous = {name: np.ascontiguousarray(read(name)) for name in names}
        save_file(contiguous, directory / file, metadata={"format": "pt"})
        # The writer makes files that only their owner may read; give them the permissions of their directory.
        (directory / file).chmod(directory.stat().st_mode & 0o666)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
