"""One decoder for the Llama, Qwen2, Qwen2.5 and Qwen3 family, and its way from and to Hugging Face directories.

Everyone else sees (config, params) and pure functions; the modules stay inside.
"""

from selecttkd_jax.models._attention import ATTENTIONS, choose_attention
from selecttkd_jax.models._cache import KVCache, init_cache
from selecttkd_jax.models._config import DecoderConfig, RotaryConfig
from selecttkd_jax.models._decoder import REMATS, count_params, forward, head, head_logits, init_params, stored_head
from selecttkd_jax.models._int8 import quantize_int8
from selecttkd_jax.models._layer_search import (
    Drop,
    check_keep_count,
    count_tries,
    drop_block,
    drop_greedily,
    drop_least,
    kept_layers,
)
from selecttkd_jax.models._lora import LoraConfig, attach_adapters, init_lora, merge_lora
from selecttkd_jax.models._placement import logical_axes, shardings
from selecttkd_jax.models._pretrained import Pretrained, logits
from selecttkd_jax.models._prune import evenly_spaced_layers, prune_layers
from selecttkd_jax.models._unstack import unstack_layers
from selecttkd_jax.models.files._card import Origin, describe_loading, find_origin, pruned_card, write_card
from selecttkd_jax.models.files._companions import MODEL_FILES
from selecttkd_jax.models.files._fingerprint import fingerprint_files
from selecttkd_jax.models.files._gguf import convert_gguf
from selecttkd_jax.models.files._hf_config import decoder_config, hf_config
from selecttkd_jax.models.files._hf_directory import check_weights, from_pretrained, read_config, save_pretrained
from selecttkd_jax.models.files._location import find_packaged_gguf, locate
from selecttkd_jax.models.files._new_directory import check_replaceable
from selecttkd_jax.models.files._peft import load_adapter, save_adapter

__all__ = [
    "kept_layers",
    "drop_least",
    "drop_greedily",
    "drop_block",
    "count_tries",
    "check_keep_count",
    "Drop",
    "ATTENTIONS",
    "DecoderConfig",
    "KVCache",
    "LoraConfig",
    "MODEL_FILES",
    "Origin",
    "Pretrained",
    "REMATS",
    "RotaryConfig",
    "attach_adapters",
    "check_replaceable",
    "check_weights",
    "choose_attention",
    "convert_gguf",
    "count_params",
    "decoder_config",
    "describe_loading",
    "evenly_spaced_layers",
    "find_origin",
    "find_packaged_gguf",
    "fingerprint_files",
    "forward",
    "from_pretrained",
    "head",
    "head_logits",
    "hf_config",
    "init_cache",
    "init_lora",
    "init_params",
    "load_adapter",
    "locate",
    "logical_axes",
    "logits",
    "merge_lora",
    "prune_layers",
    "pruned_card",
    "quantize_int8",
    "read_config",
    "save_adapter",
    "save_pretrained",
    "shardings",
    "stored_head",
    "unstack_layers",
    "write_card",
]
