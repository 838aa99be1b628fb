"""A model with everything needed to write it again, and its logits in a single call."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selecttkd_jax._array_types import Params
from selecttkd_jax._checks import check_rank
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._decoder import forward, head_logits


@dataclass(frozen=True)
class Pretrained:
    """A model with everything needed to write it again.

    Attributes:
        config: The decoder.
        params: Its parameters.
        hf_config: The content of `config.json`, as read.
        source: The directory it came from, which holds tokenizer and generation settings; None if there is none.
    """

    config: DecoderConfig
    params: Params
    hf_config: dict[str, Any]
    source: Path | None = None


def logits(pretrained: Pretrained, input_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Logits of rows without padding, float32.

    Example:
        >>> from selecttkd_jax.models import init_params
        >>> config = DecoderConfig(32, 8, 16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4)
        >>> model = Pretrained(config, init_params(config, jax.random.key(0)), hf_config={})
        >>> logits(model, jnp.array([[1, 2, 3]])).shape
        (1, 3, 32)
    """
    input_ids = jnp.asarray(input_ids)
    check_rank("input_ids", input_ids, 2)
    return _logits(pretrained.config, pretrained.params, input_ids)


@partial(jax.jit, static_argnums=0)
def _logits(config: DecoderConfig, params: Params, input_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :], input_ids.shape)
    hidden, _ = forward(config, params, input_ids, positions, jnp.ones_like(positions))
    return head_logits(config, params, hidden)
