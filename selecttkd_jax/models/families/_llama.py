"""Llama 2, 3 and their kin: SmolLM, TinyLlama and others that say `"model_type": "llama"`."""

from selecttkd_jax.models.families._family import Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    gguf_architecture="llama",
    options={"attention_bias": ("qkv_bias", "o_bias")},
    defaults={"max_position_embeddings": 2048},
    gguf_pairs_rows=True,
)
