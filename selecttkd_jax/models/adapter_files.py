"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.location import read_json
from selecttkd_jax.models.lora import TARGETS, LoraConfig
from selecttkd_jax.models.pretrained import new_directory
from selecttkd_jax.models.weight_table import Weight

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Settings of PEFT that change what the adapter computes, with the one value that we follow.
FOLLOWED = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def save_adapter(directory: str | Path, config: LoraConfig, decoder: DecoderConfig, lora: Params, base: str) -> None:
    """Writes adapters that `peft.PeftModel.from_pretrained` loads onto the base model; of several processes, the first.

    Args:
        directory: where to write; an existing adapter there is replaced once the new one is complete.
        config: what the adapters were made with.
        decoder: the adapted model.
        lora: the adapters, which every process has whole.
        base: the base model's directory or hub name, for the loader to find it.

    Raises:
        InputError: if the directory exists and holds anything that a model's or an adapter's directory does not.
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
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).absolute()) if Path(base).is_dir() else base,
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
    with new_directory(directory) as unfinished:
        (unfinished / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        (unfinished / WEIGHTS_FILE).chmod(unfinished.stat().st_mode & 0o666)


def load_adapter(directory: str | Path, decoder: DecoderConfig) -> tuple[LoraConfig, Params]:
    """Reads adapters that `save_adapter` or PEFT wrote.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        decoder: the model they were made for.

    Returns:
        Their config and float32 adapters.

    Raises:
        InputError: if the adapter does not fit `decoder`, or asks for something that is not followed here.
    """
    directory = Path(directory).expanduser()
    config = _config(read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing, truncated or not a safetensors file ({error})") from None
    lora: Params = {}
    for (part, name), weight in config.weights():
        outputs = weight.shape(decoder)[1 + weight.num_inputs :]
        inputs = weight.shape(decoder)[1 : 1 + weight.num_inputs]
        shapes = {"a": (*inputs, config.rank), "b": (config.rank, *outputs), "magnitude": outputs}
        adapter: dict[str, jax.Array] = {}
        for which, matrix in _matrices(weight, decoder, config).items():
            stacked = np.empty((decoder.num_layers, *shapes[which]), np.float32)
            for layer in range(decoder.num_layers):
                tensor_name = _tensor_name(which, weight, layer)
                if tensor_name not in found:
                    raise InputError(f"{path} has no tensor {tensor_name}; was it made for another model?")
                tensor = found.pop(tensor_name)
                if tensor.shape != matrix[::-1]:
                    raise InputError(
                        f"{path}: tensor {tensor_name} has shape {tensor.shape}, but this model asks for {matrix[::-1]}"
                    )
                stacked[layer] = tensor.T.reshape(shapes[which])
            adapter[which] = jnp.asarray(stacked)
        lora.setdefault(part, {})[name] = adapter
    if found:
        raise InputError(f"{path} has a tensor that is not used: {min(found)}")
    return config, lora


def _config(description: dict[str, Any], path: Path) -> LoraConfig:
    for name, value in FOLLOWED.items():
        # PEFT writes some of these as null, false or {} alike where they are not used.
        if (description.get(name) or None) != (value or None):
            raise InputError(f"{path}: {name} = {description.get(name)!r} is not supported, only {value!r}")
    targets = description.get("target_modules")
    if not isinstance(targets, list) or not set(targets) <= set(TARGETS):
        raise InputError(f"{path}: target_modules must be a list of {', '.join(TARGETS)}; got {targets!r}")
    ordered = tuple(target for target in TARGETS if target in targets)
    rank, alpha, dora = (description.get(name) for name in ("r", "lora_alpha", "use_dora"))
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise InputError(f"{path}: r and lora_alpha must be numbers, got {rank!r} and {alpha!r}")
    return LoraConfig(rank, float(alpha), ordered, bool(dora))


def _tensor_name(which: str, weight: Weight, layer: int) -> str:
    """The name on disk of one layer's `a`, `b` or `magnitude`."""
    suffix = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}[which]
    return f"base_model.model.{weight.hf_name.format(layer).removesuffix('weight')}{suffix}"


def _matrices(weight: Weight, decoder: DecoderConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The shape of one layer's `a`, `b` and `magnitude` with inputs and outputs flattened; on disk it is transposed."""
    outputs, inputs = weight.hf_shape(decoder)
    shapes = {"a": (inputs, config.rank), "b": (config.rank, outputs)}
    return shapes | {"magnitude": (outputs,)} if config.dora else shapes
