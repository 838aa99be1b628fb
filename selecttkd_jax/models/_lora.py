"""Low-rank adapters (LoRA, DoRA) of the decoder's projections: frozen weights, trained branches.

Adapters mirror the parameters: `{"attention": {"q": {"a", "b"}, ...}, "mlp": {...}}`, stacked `[L, ...]` and float32.
`attach_adapters` joins them to frozen parameters for `forward`; `merge_lora` makes plain parameters of both.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from selecttkd_jax._array_types import Array, Key, Params
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._layers import SMALLEST_SQUARE
from selecttkd_jax.models._weight_table import WEIGHTS, Weight

# The attention and MLP projections, under the names that PEFT's `target_modules` uses.
TARGETS = {weight.hf_name.split(".")[-2]: weight for weight in WEIGHTS if weight.path.endswith(".kernel")}


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters of the student's projections instead of its weights."""

    rank: int = 16
    """Rank r of each adapter."""
    alpha: float = 32.0
    """The adapters' product counts alpha / rank times (PEFT's lora_alpha)."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """Projections that are adapted, as PEFT's target_modules names them."""
    dora: bool = False
    """Train the length of each kernel column apart from its direction (DoRA)."""

    def __post_init__(self) -> None:
        check_at_least("lora.rank", self.rank, 1)
        if not 0 < self.alpha < math.inf:
            raise InputError(f"lora.alpha must be above 0 and finite, got {self.alpha}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"lora.targets must name each projection once and at least one, got {self.targets}")
        for target in self.targets:
            check_one_of("lora.targets", target, TARGETS)

    @property
    def scale(self) -> float:
        """By what the adapters' product is multiplied."""
        return self.alpha / self.rank

    def weights(self) -> Iterator[tuple[tuple[str, str], Weight]]:
        """The adapted kernels: their two keys below `layers` and their rows of the weight table, in its order."""
        for target, weight in TARGETS.items():
            if target in self.targets:
                _, part, name, _ = weight.path.split(".")
                yield (part, name), weight


def init_lora(config: LoraConfig, decoder: DecoderConfig, params: Params, key: Key) -> Params:
    """Fresh adapters, with which the model computes what it computed before.

    A is uniform in +-1/sqrt(I), I the projection's inputs (PEFT's Kaiming-uniform), and B is zero.

    Args:
        config: Rank and targets.
        decoder: The adapted model.
        params: Its parameters, whose column lengths DoRA's magnitudes start from.
        key: PRNG key.

    Returns:
        Float32 adapters: `a` [L, inputs..., r], `b` [L, r, outputs...] and, for DoRA, `magnitude` [L, outputs...].
    """
    lora: Params = {}
    for number, ((part, name), weight) in enumerate(config.weights()):
        num_layers, *kernel = weight.shape(decoder)
        inputs, outputs = kernel[: weight.num_inputs], kernel[weight.num_inputs :]
        bound = 1 / math.sqrt(prod(inputs))
        a_shape = (num_layers, *inputs, config.rank)
        adapter = {
            "a": jax.random.uniform(jax.random.fold_in(key, number), a_shape, jnp.float32, -bound, bound),
            "b": jnp.zeros((num_layers, config.rank, *outputs), jnp.float32),
        }
        if config.dora:
            lengths = _column_lengths(params["layers"][part][name]["kernel"], weight)
            adapter["magnitude"] = lengths.reshape(num_layers, *outputs)
        lora.setdefault(part, {})[name] = adapter
    return lora


def attach_adapters(params: Params, lora: Params, config: LoraConfig) -> Params:
    """Parameters for `forward` in which every adapted projection has its low-rank branch.

    Differentiable in `lora`; `params` are shared as they are, in their own dtype. `save_pretrained` wants `merge_lora`.
    """
    adapters = {
        part: {name: {**adapter, "b": config.scale * adapter["b"]} for name, adapter in projections.items()}
        for part, projections in lora.items()
    }
    return {**params, "adapters": adapters}


def merge_lora(params: Params, lora: Params, config: LoraConfig) -> Params:
    """Plain parameters of the adapted model: `W + alpha/r A B`, for DoRA with its columns scaled to `magnitude`.

    Args:
        params: The frozen parameters.
        lora: The adapters.
        config: What they were made with.

    Returns:
        Parameters whose adapted kernels are float32 (a small change would vanish in a shorter dtype) and whose other
        leaves are those of `params`.
    """
    layers: dict[str, Any] = {part: dict(inner) for part, inner in params["layers"].items()}
    for (part, name), weight in config.weights():
        projection, adapter = layers[part][name], lora[part][name]
        # Each device makes its part of the sum, and no device all of the change.
        sharding = None if isinstance(projection["kernel"], Tracer) else projection["kernel"].sharding
        merged = jax.jit(partial(_merge_kernel, config, weight), out_shardings=sharding)
        layers[part][name] = {**projection, "kernel": merged(projection["kernel"], adapter)}
    return {**params, "layers": layers}


def _merge_kernel(config: LoraConfig, weight: Weight, kernel: Array, adapter: Params) -> Array:
    inputs, outputs = weight.axes[: weight.num_inputs], weight.axes[weight.num_inputs :]
    product = f"L{inputs}R,LR{outputs}->L{inputs}{outputs}"
    change = jnp.einsum(product, adapter["a"], adapter["b"], precision="highest")
    kernel = kernel.astype(jnp.float32) + config.scale * change
    if not config.dora:
        return kernel
    lengths = _column_lengths(kernel, weight)
    smallest = math.sqrt(SMALLEST_SQUARE)
    return kernel * (adapter["magnitude"].reshape(lengths.shape) / jnp.maximum(lengths, smallest))


def _column_lengths(kernel: Array, weight: Weight) -> Array:
    """The Euclidean length of each output's column of a stacked kernel, over axes of size 1 where the inputs were."""
    inputs = tuple(range(1, 1 + weight.num_inputs))
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=inputs, keepdims=True))
