"""The families of models that the decoder computes: a table of data, one file a family."""

from selecttkd_jax.models.families._family import Family
from selecttkd_jax.models.families._llama import LLAMA
from selecttkd_jax.models.families._qwen2 import QWEN2
from selecttkd_jax.models.families._qwen3 import QWEN3

FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3)}
"""Families by their `model_type` in config.json. A decoder that several of them describe is written as the first."""

GGUF_FAMILIES = {family.gguf_architecture: family for family in FAMILIES.values() if family.gguf_architecture}
"""Families by their `general.architecture` in GGUF files."""

__all__ = ["FAMILIES", "GGUF_FAMILIES", "Family"]
