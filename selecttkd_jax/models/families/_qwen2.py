"""Qwen2 and Qwen2.5: queries, keys and values with a bias."""

from selecttkd_jax.models.families._family import Family

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    always=("qkv_bias",),
    fixed={"attention_bias": True},
    required=("num_key_value_heads",),
    defaults={"max_position_embeddings": 32768},
)
