"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import check_links, expand_home, read_json_object, show_name
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._lora import LoraConfig
from selecttkd_jax.models._weight_table import Weight
from selecttkd_jax.models.files._companions import CARD
from selecttkd_jax.models.files._json import write_json
from selecttkd_jax.models.files._layouts import shape_on_disk
from selecttkd_jax.models.files._new_directory import open_new_directory
from selecttkd_jax.models.files._peft_config import read_adapter_config
from selecttkd_jax.models.files._shards import Stored, check_tensor, read_header
from selecttkd_jax.models.files._weights import check_finite

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(
    directory: str | Path,
    config: LoraConfig,
    decoder: DecoderConfig,
    lora: Params,
    base: str,
    card: str | None = None,
) -> None:
    """Writes adapters that `peft.PeftModel.from_pretrained` loads onto the base model; of several processes, the first.

    Args:
        directory: Where to write; an existing adapter there is replaced once the new one is complete.
        config: What the adapters were made with.
        decoder: The adapted model.
        lora: The adapters, replicated on every process.
        base: The base model's directory or hub name, for the loader to find it.
        card: The text of the model card, README.md; None writes none.

    Raises:
        InputError: If the directory exists and holds anything that a model's or an adapter's directory does not.
    """
    if jax.process_index() != 0:
        return
    tensors: dict[str, np.ndarray] = {}
    for (part, name), weight in config.weights():
        matrices = _matrices(weight, decoder, config)
        for which, stacked in jax.device_get(lora[part][name]).items():
            for layer in range(decoder.num_layers):
                matrix = stacked[layer].reshape(matrices[which])
                tensors[_tensor_name(which, weight, layer)] = np.ascontiguousarray(matrix.T)
    local = expand_home(base)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(local.absolute()) if local.is_dir() else base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "use_dora": config.dora,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
    }
    with open_new_directory(directory) as unfinished:
        write_json(unfinished / CONFIG_FILE, description)
        save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        if card is not None:
            (unfinished / CARD).write_text(card, encoding="utf-8")
        (unfinished / WEIGHTS_FILE).chmod(unfinished.stat().st_mode & 0o666)


def load_adapter(directory: str | Path, decoder: DecoderConfig) -> tuple[LoraConfig, Params]:
    """Reads adapters that `save_adapter` or PEFT wrote.

    Args:
        directory: With adapter_config.json and adapter_model.safetensors.
        decoder: The model they were made for.

    Returns:
        Their config and float32 adapters.

    Raises:
        InputError: If the adapter does not fit `decoder`, or asks for something that is not followed here.
    """
    directory = expand_home(directory)
    check_links(directory, (CONFIG_FILE, WEIGHTS_FILE))
    config = read_adapter_config(read_json_object(directory / CONFIG_FILE), directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path} does not exist; an adapter is read from safetensors only")
    _check_tensors(config, decoder, path)
    # Each projection's tensors, stacked over the layers in our layout.
    lora: Params = {}
    for (part, name), weight in config.weights():
        outputs = weight.shape(decoder)[1 + weight.num_inputs :]
        inputs = weight.shape(decoder)[1 : 1 + weight.num_inputs]
        shapes = {"a": (*inputs, config.rank), "b": (config.rank, *outputs), "magnitude": outputs}
        adapter: dict[str, jax.Array] = {}
        for which in _matrices(weight, decoder, config):
            stacked = np.empty((decoder.num_layers, *shapes[which]), np.float32)
            for layer in range(decoder.num_layers):
                tensor = Stored(path, _tensor_name(which, weight, layer)).read()
                with np.errstate(over="ignore"):
                    stacked[layer] = tensor.T.reshape(shapes[which])
                check_finite(stacked[layer], _tensor_name(which, weight, layer), path)
            adapter[which] = jnp.asarray(stacked)
        lora.setdefault(part, {})[name] = adapter
    return config, lora


def _check_tensors(config: LoraConfig, decoder: DecoderConfig, path: Path) -> None:
    """Compares the header of an adapter's file with what its config and the model ask for; reads no weights."""
    header = read_header(path)
    for _, weight in config.weights():
        for which, matrix in _matrices(weight, decoder, config).items():
            for layer in range(decoder.num_layers):
                name = _tensor_name(which, weight, layer)
                if name not in header:
                    raise InputError(f"{path} has no tensor {name}; was it made for another model?")
                check_tensor(path, name, header.pop(name), matrix[::-1], CONFIG_FILE)
    if header:
        raise InputError(f"{path} has a tensor that is not used: {show_name(min(header))}")


def _tensor_name(which: str, weight: Weight, layer: int) -> str:
    """The name on disk of one layer's `a`, `b` or `magnitude`."""
    suffix = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}[which]
    return f"base_model.model.{weight.hf_name.format(layer).removesuffix('weight')}{suffix}"


def _matrices(weight: Weight, decoder: DecoderConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The shape of one layer's `a`, `b` and `magnitude` with inputs and outputs flattened; on disk it is transposed."""
    outputs, inputs = shape_on_disk(weight, decoder)
    shapes = {"a": (inputs, config.rank), "b": (config.rank, outputs)}
    return shapes | {"magnitude": (outputs,)} if config.dora else shapes
