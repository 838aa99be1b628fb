"""Models in Hugging Face directories: read, write, and the logits of one in a single call."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError, check_rank
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.decoder import forward, head_logits
from selecttkd_jax.models.hf_config import decoder_config
from selecttkd_jax.models.location import locate, read_json
from selecttkd_jax.models.weights import check_tensors, gather_params, read_params, write_params

# Files that travel with the weights unchanged.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


Shardings = dict[str, Any] | Callable[[DecoderConfig], dict[str, Any]]


@dataclass(frozen=True)
class Pretrained:
    """A model with everything needed to write it again.

    Attributes:
        config: the decoder.
        params: its parameters.
        hf_config: the content of `config.json`, as read.
        source: the directory it came from, which holds tokenizer and generation settings; None if there is none.
    """

    config: DecoderConfig
    params: Params
    hf_config: dict[str, Any]
    source: Path | None = None


def read_config(path_or_hub_name: str | Path) -> tuple[DecoderConfig, dict[str, Any]]:
    """The decoder's config and the content of `config.json`; every field is checked and no weights are loaded."""
    directory = locate(path_or_hub_name, weights=False)
    hf_config = read_json(directory / "config.json")
    return decoder_config(hf_config, str(directory / "config.json")), hf_config


def check_weights(path_or_hub_name: str | Path) -> None:
    """Raises InputError unless the weights on disk are whole and are those that `config.json` describes.

    Only the headers of the files are read, so this takes milliseconds for a model of any size.
    """
    config, _ = read_config(path_or_hub_name)
    check_tensors(config, locate(path_or_hub_name, weights=True))


def from_pretrained(
    path_or_hub_name: str | Path, dtype: jnp.dtype = jnp.float32, shardings: Shardings | None = None
) -> Pretrained:
    """Reads a model from a directory or from the Hugging Face hub.

    Args:
        path_or_hub_name: a directory with config.json and *.safetensors, or `owner/name` on the hub.
        dtype: dtype of the parameters, whatever the file's.
        shardings: where each parameter lies: a tree of the parameters' shape, or a function from the decoder's config
            to one. Each process then reads only the slices that its own devices hold. None: on the default device.

    Raises:
        InputError: if anything about the config or the weights is not as expected; nothing is loaded then.

    Example:
        >>> teacher = from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", dtype=jnp.bfloat16)  # doctest: +SKIP
    """
    config, hf_config = read_config(path_or_hub_name)
    directory = locate(path_or_hub_name, weights=True)
    tree = shardings(config) if callable(shardings) else shardings
    return Pretrained(config, read_params(config, directory, dtype, tree), hf_config, directory)


def save_pretrained(directory: str | Path, pretrained: Pretrained, dtype: jnp.dtype | None = None) -> None:
    """Writes config.json, safetensors and the source's tokenizer files: a directory that transformers and vLLM load.

    An existing model directory is replaced, and only once the new one is complete. Where the parameters are spread over
    several processes, each of them has to call this; the first one writes, and no host gathers more than a tensor.

    Args:
        directory: where to write.
        pretrained: what to write.
        dtype: dtype on disk; None keeps the parameters'.

    Raises:
        InputError: if the directory exists and holds anything that a model directory does not, or the parameters have
            adapters or int8 kernels, which this format does not hold.
    """
    if "adapters" in pretrained.params:
        raise InputError("the parameters to save have adapters; merge them with merge_lora, or use save_adapter")
    if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(pretrained.params)):
        raise InputError("the parameters to save are int8; save those that they were made from")
    on_disk = jnp.dtype(dtype if dtype is not None else pretrained.params["embedding"].dtype)
    hf_config = {name: value for name, value in pretrained.hf_config.items() if name != "torch_dtype"}
    hf_config["dtype"] = on_disk.name
    if decoder_config(hf_config) != pretrained.config:
        raise InputError("config and hf_config of the model to save describe two different decoders")
    if jax.process_index() != 0:
        gather_params(pretrained.config, pretrained.params, on_disk)
        return
    with new_directory(directory) as unfinished:
        (unfinished / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if pretrained.source is not None and (pretrained.source / name).is_file():
                shutil.copyfile(pretrained.source / name, unfinished / name)
        write_params(pretrained.config, pretrained.params, unfinished, on_disk)


@contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """A temporary sibling that becomes `directory` when the block ends well, and vanishes when it does not."""
    target = Path(directory).expanduser().absolute()
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unfinished", dir=target.parent))
    try:
        # mkdtemp gives a directory that only its owner may read.
        unfinished.chmod(0o777 & ~_umask())
        yield unfinished
        if target.is_dir():
            replaced = unfinished.with_suffix(".replaced")
            os.rename(target, replaced)
            os.rename(unfinished, target)
            shutil.rmtree(replaced)
        else:
            os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_replaceable(directory: str | Path) -> None:
    """Raises InputError if writing a model to `directory` would remove something that is not a model's file."""
    path = Path(directory).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} exists and is not a directory")
    known = {"config.json", "adapter_config.json", "model.safetensors.index.json", *COMPANIONS}
    foreign = sorted(
        entry.name
        for entry in (path.iterdir() if path.is_dir() else [])
        if entry.name not in known and entry.suffix != ".safetensors"
    )
    if foreign:
        raise InputError(f"{path} holds {foreign[0]}, which is not a model's file; choose another directory")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def logits(pretrained: Pretrained, input_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Logits of rows without padding, float32.

    Example:
        >>> logits(from_pretrained("models/teacher"), jnp.array([[1, 2, 3]])).shape  # doctest: +SKIP
        (1, 3, 49152)
    """
    input_ids = jnp.asarray(input_ids)
    check_rank("input_ids", input_ids, 2)
    return _logits(pretrained.config, pretrained.params, input_ids)


@partial(jax.jit, static_argnums=0)
def _logits(config: DecoderConfig, params: Params, input_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :], input_ids.shape)
    hidden, _ = forward(config, params, input_ids, positions, jnp.ones_like(positions))
    return head_logits(config, params, hidden)
