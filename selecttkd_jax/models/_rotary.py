"""Rotary position embedding: inverse frequencies of each kind, and the rotation itself."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from selecttkd_jax.models._config import RotaryConfig


def inverse_frequencies(config: RotaryConfig, head_dim: int) -> np.ndarray:
    """Radians per token of each rotated pair, float32 `[E / 2]`.

    `default`: `theta ** (-2i / E)`; `linear`: that over `factor`; `llama3` and `yarn`: a blend of the two, by the
    number of turns within the original context (YaRN blends linearly in i between two such numbers).

    Source: transformers' `modeling_rope_utils` is the reference for all four kinds; YaRN, arXiv 2309.00071, section 3.
    """
    frequencies = config.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if config.kind == "linear":
        frequencies = frequencies / config.factor
    elif config.kind == "llama3":
        turns = config.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        frequencies = _blend(frequencies, config.factor, np.clip(kept, 0.0, 1.0))
    elif config.kind == "yarn":
        low, high = _find_yarn_boundaries(config, head_dim)
        stretched = (np.arange(head_dim // 2) - low) / (high - low)
        frequencies = _blend(frequencies, config.factor, 1.0 - np.clip(stretched, 0.0, 1.0))
    return frequencies.astype(np.float32)


def _blend(frequencies: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    return kept * frequencies + (1.0 - kept) * frequencies / factor


def _find_yarn_boundaries(config: RotaryConfig, head_dim: int) -> tuple[float, float]:
    """The pairs between which YaRN passes from kept to stretched frequencies."""

    def pair_turning(turns: float) -> float:
        wavelengths = config.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(config.theta))

    low, high = pair_turning(config.beta_fast), pair_turning(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The reference caps the upper boundary at E - 1 although only E / 2 pairs exist.
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001


def rotary_tables(
    config: RotaryConfig, head_dim: int, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 E/2"], Float[Array, "B T 1 E/2"]]:
    """Cosine and sine of each position's angles, float32, with an axis left for the heads."""
    frequencies = jnp.asarray(inverse_frequencies(config, head_dim))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles) * config.attention_factor, jnp.sin(angles) * config.attention_factor


def rotate(
    x: Float[Array, "B T H E"], cosine: Float[Array, "B T 1 E/2"], sine: Float[Array, "B T 1 E/2"]
) -> Float[Array, "B T H E"]:
    """Turns the pairs `(x[i], x[i + E/2])` by their angles, in float32; the result has x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
