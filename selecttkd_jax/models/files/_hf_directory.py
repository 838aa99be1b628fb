"""Models in Hugging Face directories, read and written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import read_json_object
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._pretrained import Pretrained
from selecttkd_jax.models.families import FAMILIES
from selecttkd_jax.models.files._companions import CARD, copy_companions
from selecttkd_jax.models.files._generation_config import as_eos_token_id, write_stop_ids
from selecttkd_jax.models.files._hf_config import decoder_config
from selecttkd_jax.models.files._json import write_json
from selecttkd_jax.models.files._location import locate
from selecttkd_jax.models.files._new_directory import open_new_directory
from selecttkd_jax.models.files._shards import check_tensors
from selecttkd_jax.models.files._weights import gather_params, read_params, write_params

Shardings = dict[str, Any] | Callable[[DecoderConfig], dict[str, Any]]


def read_config(path_or_hub_name: str | Path) -> tuple[DecoderConfig, dict[str, Any]]:
    """The decoder's config and the content of `config.json`; every field is checked and no weights are loaded."""
    directory = locate(path_or_hub_name, weights=False)
    hf_config = read_json_object(directory / "config.json")
    return decoder_config(hf_config, str(directory / "config.json")), hf_config


def check_weights(path_or_hub_name: str | Path) -> None:
    """Raises InputError unless the weights on disk are complete and are those that `config.json` describes.

    Only the headers of the files are read, so this takes milliseconds for a model of any size.
    """
    config, _ = read_config(path_or_hub_name)
    check_tensors(config, locate(path_or_hub_name, weights=True))


def from_pretrained(
    path_or_hub_name: str | Path, dtype: jnp.dtype = jnp.float32, shardings: Shardings | None = None
) -> Pretrained:
    """Reads a model from a directory or from the Hugging Face hub.

    Args:
        path_or_hub_name: A directory with config.json and *.safetensors, or `owner/name` on the hub.
        dtype: Dtype of the parameters, whatever the file's.
        shardings: The sharding of each parameter: a tree like the parameters', or a function from the decoder's config
            to one. Each process then reads only the slices that its own devices hold. None: on the default device.

    Raises:
        InputError: If anything about the config or the weights is not as expected; nothing is loaded then.

    Example:
        >>> teacher = from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", dtype=jnp.bfloat16)  # doctest: +SKIP
    """
    config, hf_config = read_config(path_or_hub_name)
    directory = locate(path_or_hub_name, weights=True)
    tree = shardings(config) if callable(shardings) else shardings
    return Pretrained(config, read_params(config, directory, dtype, tree), hf_config, directory)


def save_pretrained(
    directory: str | Path,
    pretrained: Pretrained,
    dtype: jnp.dtype | None = None,
    stop_ids: Sequence[int] | None = None,
    card: str | None = None,
) -> None:
    """Writes config.json, safetensors and the source's tokenizer files: a directory that transformers and vLLM load.

    An existing model directory is replaced, and only once the new one is complete. Where the parameters are spread over
    several processes, each of them has to call this; the first one writes, and no host gathers more than a tensor.

    Args:
        directory: Where to write.
        pretrained: What to write.
        dtype: Dtype on disk; None keeps the parameters'.
        stop_ids: Ids at which this model's responses end, for config.json and generation_config.json, whatever the
            source's say; None keeps what they say.
        card: The text of the model card, README.md; None writes none.

    Raises:
        InputError: If the directory exists and holds anything that a model directory does not, or the parameters have
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
    # A source may leave it out, but vLLM and others choose the model by it.
    hf_config["architectures"] = [FAMILIES[hf_config["model_type"]].architecture]
    if stop_ids is not None:
        hf_config["eos_token_id"] = as_eos_token_id(stop_ids)
    if jax.process_index() != 0:
        gather_params(pretrained.config, pretrained.params, on_disk)
        return
    with open_new_directory(directory) as unfinished:
        write_json(unfinished / "config.json", hf_config)
        if pretrained.source is not None:
            copy_companions(pretrained.source, unfinished)
        if card is not None:
            (unfinished / CARD).write_text(card, encoding="utf-8")
        if stop_ids is not None:
            write_stop_ids(unfinished, pretrained.hf_config, stop_ids)
        write_params(pretrained.config, pretrained.params, unfinished, on_disk)
