"""The one table between our parameters and their names and layouts on disk. Import, export and GGUF derive from it.

A row gives our path and axes, the Hugging Face name and axes, and the GGUF name. `HE,D` means a matrix whose first
axis is H and E flattened together. The layout change from disk to ours and its inverse both follow from the axes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from selecttkd_jax.models.config import DecoderConfig


def axis_sizes(config: DecoderConfig) -> dict[str, int]:
    """Size of each axis letter."""
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.mlp_size,
        "H": config.num_heads,
        "K": config.num_kv_heads,
        "E": config.head_dim,
    }


@dataclass(frozen=True)
class Weight:
    """One parameter; `{}` in its names on disk stands for the layer, over which ours is stacked: `[L, ...]`.

    Attributes:
        path: keys into the parameters, joined by dots.
        axes: our axes, without L.
        hf_name: name in a safetensors file.
        hf_axes: axes in a safetensors file, separated by commas.
        gguf_name: name in a GGUF file; its axes are those of the safetensors file.
        needs: the field of `DecoderConfig` that must be true for this parameter to exist; "" if it always does.
    """

    path: str
    axes: str
    hf_name: str
    hf_axes: str
    gguf_name: str
    needs: str = ""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has one."""
        return "{}" in self.hf_name

    @property
    def num_inputs(self) -> int:
        """How many of a kernel's leading axes are inputs; on disk, the outputs stand first."""
        return len(self.hf_axes.split(",")[1])

    def hf_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Shape of the tensor (of one layer's) on disk."""
        sizes = axis_sizes(config)
        return tuple(prod(sizes[axis] for axis in group) for group in self.hf_axes.split(","))

    def shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Shape of our parameter, with L where it is stacked."""
        sizes = axis_sizes(config)
        stack = (config.num_layers,) if self.per_layer else ()
        return stack + tuple(sizes[axis] for axis in self.axes)

    def from_hf(self, config: DecoderConfig, tensor: np.ndarray) -> np.ndarray:
        """One tensor from disk, in our layout."""
        return self.part_from_hf(config, (slice(None),) * len(self.axes), lambda part: tensor[part])

    def part_from_hf(
        self, config: DecoderConfig, wanted: tuple[slice, ...], read: Callable[[tuple[slice, ...]], np.ndarray]
    ) -> np.ndarray:
        """Part of one tensor, in our layout; no more of it is read than a few contiguous ranges that hold it.

        Args:
            config: The decoder.
            wanted: A slice of each of our axes, without L.
            read: Gives a block of the tensor on disk, from a slice of each of its axes.
        """
        sizes, asked = axis_sizes(config), dict(zip(self.axes, wanted, strict=True))
        block, on_disk = dict(sizes), []
        for outer, *inner in self.hf_axes.split(","):
            # Of axes flattened together, a range of the outer one is contiguous; the inner ones are cut after reading.
            start, stop, _ = asked[outer].indices(sizes[outer])
            stride = prod(sizes[axis] for axis in inner)
            on_disk.append(slice(start * stride, stop * stride))
            block[outer], asked[outer] = stop - start, slice(None)
        flat = self.hf_axes.replace(",", "")
        tensor = read(tuple(on_disk)).reshape([block[axis] for axis in flat])
        return tensor.transpose([flat.index(axis) for axis in self.axes])[tuple(asked[axis] for axis in self.axes)]

    def to_hf(self, config: DecoderConfig, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `from_hf`."""
        flat = self.hf_axes.replace(",", "")
        return tensor.transpose([self.axes.index(axis) for axis in flat]).reshape(self.hf_shape(config))


def _in_layer(path: str, axes: str, hf_name: str, hf_axes: str, gguf_name: str, needs: str = "") -> Weight:
    return Weight(f"layers.{path}", axes, f"model.layers.{{}}.{hf_name}", hf_axes, f"blk.{{}}.{gguf_name}", needs)


WEIGHTS = (
    Weight("embedding", "VD", "model.embed_tokens.weight", "V,D", "token_embd.weight"),
    _in_layer("attention_norm.scale", "D", "input_layernorm.weight", "D", "attn_norm.weight"),
    _in_layer("attention.q.kernel", "DHE", "self_attn.q_proj.weight", "HE,D", "attn_q.weight"),
    _in_layer("attention.k.kernel", "DKE", "self_attn.k_proj.weight", "KE,D", "attn_k.weight"),
    _in_layer("attention.v.kernel", "DKE", "self_attn.v_proj.weight", "KE,D", "attn_v.weight"),
    _in_layer("attention.o.kernel", "HED", "self_attn.o_proj.weight", "D,HE", "attn_output.weight"),
    _in_layer("attention.q.bias", "HE", "self_attn.q_proj.bias", "HE", "attn_q.bias", needs="qkv_bias"),
    _in_layer("attention.k.bias", "KE", "self_attn.k_proj.bias", "KE", "attn_k.bias", needs="qkv_bias"),
    _in_layer("attention.v.bias", "KE", "self_attn.v_proj.bias", "KE", "attn_v.bias", needs="qkv_bias"),
    _in_layer("attention.o.bias", "D", "self_attn.o_proj.bias", "D", "attn_output.bias", needs="o_bias"),
    _in_layer("attention.q_norm.scale", "E", "self_attn.q_norm.weight", "E", "attn_q_norm.weight", needs="qk_norm"),
    _in_layer("attention.k_norm.scale", "E", "self_attn.k_norm.weight", "E", "attn_k_norm.weight", needs="qk_norm"),
    _in_layer("mlp_norm.scale", "D", "post_attention_layernorm.weight", "D", "ffn_norm.weight"),
    _in_layer("mlp.gate.kernel", "DF", "mlp.gate_proj.weight", "F,D", "ffn_gate.weight"),
    _in_layer("mlp.up.kernel", "DF", "mlp.up_proj.weight", "F,D", "ffn_up.weight"),
    _in_layer("mlp.down.kernel", "FD", "mlp.down_proj.weight", "D,F", "ffn_down.weight"),
    Weight("final_norm.scale", "D", "model.norm.weight", "D", "output_norm.weight"),
    Weight("head", "DV", "lm_head.weight", "V,D", "output.weight", needs="untied_head"),
)


def weights_of(config: DecoderConfig) -> list[Weight]:
    """The rows that this decoder has."""
    return [weight for weight in WEIGHTS if not weight.needs or getattr(config, weight.needs)]


def tensors_of(config: DecoderConfig) -> dict[str, tuple[Weight, int | None]]:
    """Every tensor's Hugging Face name, with its row and its layer (None outside the layers)."""
    tensors: dict[str, tuple[Weight, int | None]] = {}
    for weight in weights_of(config):
        layers = range(config.num_layers) if weight.per_layer else [None]
        tensors.update({weight.hf_name.format(layer): (weight, layer) for layer in layers})
    return tensors


def tree_of(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves under dotted paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def at(tree: dict[str, Any], weight: Weight) -> Any:
    """The leaf of a weight in a tree of the parameters' shape."""
    node: Any = tree
    for name in weight.path.split("."):
        node = node[name]
    return node
