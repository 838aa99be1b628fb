"""Qwen3: queries and keys normalised per head, heads of a size of their own."""

from selecttkd_jax.models.families._family import Family

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    always=("qk_norm",),
    options={"attention_bias": ("qkv_bias", "o_bias")},
    required=("num_key_value_heads", "head_dim"),
    defaults={"max_position_embeddings": 32768},
)
