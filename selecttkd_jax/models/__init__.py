"""One decoder for the Llama, Qwen2, Qwen2.5 and Qwen3 family, and its way from and to Hugging Face directories.

Everyone else sees (config, params) and pure functions; the modules stay inside.
"""

from selecttkd_jax.models.adapter_files import load_adapter, save_adapter
from selecttkd_jax.models.cache import KVCache, init_cache
from selecttkd_jax.models.config import DecoderConfig, RotaryConfig
from selecttkd_jax.models.decoder import count_params, forward, head, head_logits, init_params
from selecttkd_jax.models.gguf import convert_gguf, packaged_gguf
from selecttkd_jax.models.hf_config import decoder_config, hf_config
from selecttkd_jax.models.int8 import quantize_int8
from selecttkd_jax.models.lora import LoraConfig, init_lora, merge_lora, with_adapters
from selecttkd_jax.models.pair import Pair
from selecttkd_jax.models.placement import logical_axes, shardings
from selecttkd_jax.models.pretrained import (
    Pretrained,
    check_replaceable,
    check_weights,
    from_pretrained,
    logits,
    read_config,
    save_pretrained,
)
from selecttkd_jax.models.prune import evenly_spaced_layers, prune_layers
