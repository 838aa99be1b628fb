"""Text from a model: sampling rules, and prefill and decode with a key/value cache."""

from selecttkd_jax.generation.generate import generate
from selecttkd_jax.generation.sampling import Sampling, sample

__all__ = ["Sampling", "generate", "sample"]
