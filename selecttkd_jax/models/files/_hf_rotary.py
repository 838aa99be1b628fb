"""The rotary fields of a Hugging Face config: `rope_parameters` of transformers 5, and the older two top-level fields.

transformers 5 writes `"rope_parameters": {"rope_type": ..., "rope_theta": ..., ...}`; earlier versions wrote
`"rope_theta": ...` beside `"rope_scaling": {"type" or "rope_type": ..., ...}` or null. Both are read; where a file has
both, they must describe the same embedding.
"""

import math
from typing import Any

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import shorten
from selecttkd_jax.models._config import ROTARY_KINDS, RotaryConfig

# The fields of config.json that this file reads.
ROTARY_FIELDS = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)

# What each kind takes, and what we call it. mscale and mscale_all_dim only serve to derive attention_factor.
KIND_FIELDS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
    },
}
ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ONLY_YARN = ("mscale", "mscale_all_dim")
REQUIRED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ()}


def read_rotary(hf_config: dict[str, Any], max_positions: int, source: str) -> RotaryConfig:
    """The rotary embedding that the fields of `config.json` describe; `default` with theta 10,000 where there is none.

    Args:
        hf_config: All that `config.json` holds.
        max_positions: Its `max_position_embeddings`; stands for a missing `original_max_position_embeddings`.
        source: Where the file is, for messages.

    Raises:
        InputError: For unknown kinds and fields, missing or ill-typed values, and contradictions.
    """
    blocks = _find_blocks(hf_config, source)
    found = {
        name: _read_fields(_complete(block, name, hf_config, source), max_positions, source)
        for name, block in blocks.items()
    }
    if len(set(found.values())) > 1:
        raise InputError(
            f"{source}: rope_parameters and rope_scaling contradict each other: {shorten(blocks)}; remove one"
        )
    return next(iter(found.values()))


def _read_fields(fields: dict[str, Any], max_positions: int, source: str) -> RotaryConfig:
    """The rotary embedding that these fields alone describe."""
    if fields.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{source}: partial_rotary_factor other than 1.0 is not supported")
    theta = fields.pop("rope_theta", 10_000.0)
    kind = fields.pop("rope_type", "default")
    if kind not in ROTARY_KINDS:
        raise InputError(
            f"{source}: rope_type {shorten(kind)} is not supported; supported are {', '.join(ROTARY_KINDS)}"
            f"{did_you_mean(shorten(kind), ROTARY_KINDS)}"
        )
    _check_names(fields, kind, source)
    _check_types(fields | {"rope_theta": theta}, source)
    for name in REQUIRED.get(kind, ()):
        if name not in fields:
            raise InputError(f"{source}: rope_type {kind!r} needs {name}")
    if kind in ("llama3", "yarn"):
        fields.setdefault("original_max_position_embeddings", max_positions)
    if kind == "yarn":
        _complete_yarn(fields, max_positions)
    ours: dict[str, Any] = {KIND_FIELDS[kind][name]: value for name, value in fields.items()}
    for name, value in ours.items():
        ours[name] = value if name in ("truncate", "original_max_positions") else float(value)
    return RotaryConfig(theta=float(theta), kind=kind, **ours)


def write_rotary(config: RotaryConfig) -> dict[str, Any]:
    """The value of `rope_parameters` for transformers 5."""
    names = KIND_FIELDS[config.kind]
    return {
        "rope_type": config.kind,
        "rope_theta": config.theta,
        **{theirs: getattr(config, ours) for theirs, ours in names.items()},
    }


def _find_blocks(hf_config: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The rotary blocks by name, without nulls and in one spelling; an empty one where there is none."""
    blocks = {}
    for name in ("rope_parameters", "rope_scaling"):
        block = hf_config.get(name)
        if block is not None and not isinstance(block, dict):
            raise InputError(f"{source}: {name} must be an object or null, got {shorten(block)}")
        if block:
            blocks[name] = _unify_spelling(block, f"{source}: {name}")
    return blocks or {"rope_parameters": {}}


def _complete(block: dict[str, Any], block_name: str, hf_config: dict[str, Any], source: str) -> dict[str, Any]:
    """The block with what stands beside it at top level; contradictions are refused."""
    fields = dict(block)
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        value = hf_config.get(name)
        if value is not None and fields.setdefault(name, value) != value:
            raise InputError(
                f"{source}: {name} is {shorten(value)} at top level but {shorten(fields[name])} in {block_name}; "
                "remove one"
            )
    return fields


def _unify_spelling(block: dict[str, Any], source: str) -> dict[str, Any]:
    """The block without nulls, and with the older `type` as `rope_type`."""
    fields = {name: value for name, value in block.items() if value is not None}
    older = fields.pop("type", None)
    if older is not None and fields.setdefault("rope_type", older) != older:
        raise InputError(
            f"{source}: type {shorten(older)} contradicts rope_type {shorten(fields['rope_type'])}; remove one"
        )
    return fields


def _check_names(fields: dict[str, Any], kind: str, source: str) -> None:
    known = list(KIND_FIELDS[kind]) + list(ONLY_YARN if kind == "yarn" else ())
    for name in fields:
        if name not in known:
            raise InputError(
                f"{source}: rope_type {kind!r} takes no {shorten(name)}{did_you_mean(name, known + list(ALWAYS))}; "
                f"it takes {', '.join(known) or 'only rope_theta'}"
            )


def _check_types(fields: dict[str, Any], source: str) -> None:
    for name, value in fields.items():
        expected: Any = {"truncate": bool, "original_max_position_embeddings": int}.get(name, (int, float))
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            kind = {bool: "true or false", int: "a whole number"}.get(expected, "a number")
            raise InputError(f"{source}: {name} must be {kind}, got {shorten(value)}")
        if name == "original_max_position_embeddings" and value < 1:
            raise InputError(f"{source}: {name} must be at least 1, got {value}")


def _complete_yarn(fields: dict[str, Any], max_positions: int) -> None:
    """Derives what a YaRN block may leave out, by the rules of transformers (zero betas count as left out there)."""
    fields.setdefault("factor", max_positions / fields["original_max_position_embeddings"])
    mscale, mscale_all_dim = fields.pop("mscale", None), fields.pop("mscale_all_dim", None)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(fields["factor"]) + 1.0 if fields["factor"] > 1 else 1.0

    if "attention_factor" not in fields:
        both = mscale and mscale_all_dim
        fields["attention_factor"] = magnitude(mscale) / magnitude(mscale_all_dim) if both else magnitude(1.0)
    for name in ("beta_fast", "beta_slow"):
        if not fields.get(name, 1):
            del fields[name]
