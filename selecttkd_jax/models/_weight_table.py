"""The one table of a decoder's parameters: our path and axes, and their names and axes on disk.

What initialises, shards, adapts or quantises parameters goes by the first two columns; what reads and writes files
(`files/_layouts`, `files/_gguf`) by the rest. `HE,D` means a matrix whose first axis is H and E flattened together.
"""

from dataclasses import dataclass
from typing import Any

from selecttkd_jax.models._config import DecoderConfig


@dataclass(frozen=True)
class Weight:
    """One parameter; `{}` in its names on disk stands for the layer, over which ours is stacked: `[L, ...]`.

    Attributes:
        path: Keys into the parameters, joined by dots.
        axes: Our axes, without L.
        hf_name: Name in a safetensors file.
        hf_axes: Axes in a safetensors file, separated by commas.
        gguf_name: Name in a GGUF file; its axes are those of the safetensors file.
        needs: The flag of `DecoderConfig` that must be true for this parameter to exist; "" if it always does.
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

    def shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Shape of our parameter, with L where it is stacked."""
        sizes = axis_sizes(config)
        stack = (config.num_layers,) if self.per_layer else ()
        return stack + tuple(sizes[axis] for axis in self.axes)


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


def list_weights(config: DecoderConfig) -> list[Weight]:
    """The rows that this decoder has."""
    return [weight for weight in WEIGHTS if not weight.needs or getattr(config, weight.needs)]


def nest_leaves(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves under dotted paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def get_leaf(tree: dict[str, Any], weight: Weight) -> Any:
    """The leaf of a weight in a tree like the parameters'."""
    node: Any = tree
    for name in weight.path.split("."):
        node = node[name]
    return node
