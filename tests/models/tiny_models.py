"""Tiny checkpoints with awkward sizes, written by hand: names and shapes are spelled out here, apart from the table."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SIZES = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA = SIZES | {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": ROPE}
QWEN2 = SIZES | {"model_type": "qwen2", "tie_word_embeddings": False, "rope_parameters": ROPE}
QWEN3 = SIZES | {"model_type": "qwen3", "tie_word_embeddings": True, "rope_parameters": ROPE, "num_key_value_heads": 6}


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the model, under its Hugging Face name and in its layout."""
    width, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for layer in range(config["num_hidden_layers"]):
        block = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (queries, width),
            "self_attn.k_proj.weight": (keys, width),
            "self_attn.v_proj.weight": (keys, width),
            "self_attn.o_proj.weight": (width, queries),
            "mlp.gate_proj.weight": (mlp, width),
            "mlp.up_proj.weight": (mlp, width),
            "mlp.down_proj.weight": (width, mlp),
        }
        if config["model_type"] == "qwen2" or config.get("attention_bias"):
            block |= {
                "self_attn.q_proj.bias": (queries,),
                "self_attn.k_proj.bias": (keys,),
                "self_attn.v_proj.bias": (keys,),
            }
        if config["model_type"] != "qwen2" and config.get("attention_bias"):
            block["self_attn.o_proj.bias"] = (width,)
        if config["model_type"] == "qwen3":
            block |= {
                "self_attn.q_norm.weight": (config["head_dim"],),
                "self_attn.k_norm.weight": (config["head_dim"],),
            }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(seed)
    return {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def write_model(directory: Path, config: dict, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """A Hugging Face directory with one safetensors file, or several and an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for shard in range(shards):
        part = dict(list(tensors.items())[shard::shards])
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
