"""Hugging Face `config.json` to `DecoderConfig` and back. Every field is used, known to be without effect, or refused.

A field that is passed over in silence is a wrong model that trains without a word, so a field this file does not know
is an error, and so are two fields that contradict each other.
"""

from typing import Any

from selecttkd_jax.checks import InputError, did_you_mean
from selecttkd_jax.models.config import DecoderConfig
from selecttkd_jax.models.hf_rotary import ROTARY_FIELDS, read_rotary, write_rotary

MODEL_TYPES = ("llama", "qwen2", "qwen3")

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "mlp_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# Read below, each with its own rule.
USED = (
    *SIZES,
    *ROTARY_FIELDS,
    "model_type",
    "architectures",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "attention_bias",
    "tie_word_embeddings",
    "max_position_embeddings",
    "initializer_range",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
)

# Fields that would change the computation in a way this decoder does not know, and the values at which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, None),
    "hidden_dropout": (0, None),
    "embd_pdrop": (0, None),
    "resid_pdrop": (0, None),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "quantization_config": (None,),
    "per_layer_config": ({}, None),
    "auto_map": ({}, None),
}

# Bookkeeping and generation defaults: nothing here reaches the logits.
WITHOUT_EFFECT = frozenset(
    """
    _name_or_path name_or_path _commit_hash transformers_version transformers.js_config dtype torch_dtype use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    output_attentions output_hidden_states return_dict chunk_size_feed_forward torchscript use_bfloat16 tf_legacy_loss
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation _experts_implementation _experts_implementation_internal _flash_attn_2_enabled
    id2label label2id num_labels problem_type finetuning_task task_specific_params tie_last_hidden_states
    is_llama_config unsloth_version unsloth_fixed
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def decoder_config(hf_config: dict[str, Any], source: str = "config.json") -> DecoderConfig:
    """The decoder that a Hugging Face `config.json` describes.

    Args:
        hf_config: the file's content, in the form written by transformers 5 or by earlier versions.
        source: where it came from, for messages.

    Raises:
        InputError: for an unsupported `model_type`, an unknown field, a field this decoder cannot honour, a missing or
            ill-typed field, or two fields that contradict each other.
    """
    fields = _Fields(hf_config, source)
    model_type = fields.get("model_type", str)
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{source}: model_type {model_type!r} is not supported; supported are {', '.join(MODEL_TYPES)}"
            f"{did_you_mean(model_type, MODEL_TYPES)}"
        )
    fields.refuse_unknown()
    fields.refuse_without_support()
    _check_architecture(fields, model_type)
    sizes = {ours: fields.get(theirs, int) for theirs, ours in SIZES.items()}
    _check_full_attention(fields, sizes["num_layers"])
    # transformers' own defaults where a file leaves a field out; where they differ between families there is none.
    kv_heads = fields.get("num_key_value_heads", int, sizes["num_heads"] if model_type == "llama" else _REQUIRED)
    default_head_dim = _REQUIRED if model_type == "qwen3" else sizes["hidden_size"] // sizes["num_heads"]
    attention_bias = fields.get("attention_bias", bool, False)
    if model_type == "qwen2" and "attention_bias" in hf_config and not attention_bias:
        raise InputError(f"{source}: attention_bias false contradicts model_type qwen2, which always has these biases")
    max_positions = fields.get("max_position_embeddings", int, 2048 if model_type == "llama" else 32768)
    try:
        return DecoderConfig(
            **sizes,
            num_kv_heads=kv_heads,
            head_dim=fields.get("head_dim", int, default_head_dim),
            norm_eps=float(fields.get("rms_norm_eps", float, 1e-6)),
            qkv_bias=model_type == "qwen2" or attention_bias,
            o_bias=model_type != "qwen2" and attention_bias,
            qk_norm=model_type == "qwen3",
            tied_head=fields.get("tie_word_embeddings", bool, False),
            rotary=read_rotary(hf_config, max_positions, source),
            max_positions=max_positions,
            init_scale=float(fields.get("initializer_range", float, 0.02)),
        )
    except InputError as error:
        raise error if str(error).startswith(source) else InputError(f"{source}: {error}") from None


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json`, in the form of transformers 5, for a decoder that was not read from one."""
    if config.qk_norm:
        model_type = "qwen3"
    elif config.qkv_bias and not config.o_bias:
        model_type = "qwen2"
    else:
        model_type = "llama"
    described = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.init_scale,
        "rope_parameters": write_rotary(config.rotary),
    }
    if model_type != "qwen2":
        described["attention_bias"] = config.qkv_bias
    if decoder_config(described) != config:
        raise InputError(f"no model_type among {', '.join(MODEL_TYPES)} has this combination of options: {config}")
    return described


_REQUIRED = object()


class _Fields:
    """Typed reading of a JSON object, each complaint naming file and field."""

    def __init__(self, values: dict[str, Any], source: str):
        if not isinstance(values, dict):
            raise InputError(f"{source} must hold a JSON object, got {type(values).__name__}")
        self.values = values
        self.source = source

    def get(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The field's value; `default` where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise InputError(f"{self.source} has no {name}; every model directory needs it")
            return default
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.source}: {name} must be {kind.__name__}, got {value!r}")
        return value

    def refuse_unknown(self) -> None:
        known = [*USED, *NEUTRAL, *WITHOUT_EFFECT]
        for name in self.values:
            if name not in known:
                raise InputError(
                    f"{self.source}: unknown field {name!r}{did_you_mean(name, [*USED, *NEUTRAL])}; it might change "
                    "the model, so remove it from config.json if you know that it does not"
                )

    def refuse_without_support(self) -> None:
        for name, neutral in NEUTRAL.items():
            value = self.values.get(name, neutral[0])
            if not any(
                value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in neutral
            ):
                raise InputError(f"{self.source}: {name} {value!r} is not supported; only {neutral[0]!r} is")


def _check_architecture(fields: _Fields, model_type: str) -> None:
    architectures = fields.get("architectures", list, [])
    expected = ARCHITECTURES[model_type]
    if architectures and architectures != [expected]:
        raise InputError(f"{fields.source}: architectures {architectures} is not supported; expected [{expected!r}]")


def _check_full_attention(fields: _Fields, num_layers: int) -> None:
    """Refuses sliding-window attention where a layer would use it."""
    window = fields.get("sliding_window", int, None)
    layer_types = fields.get("layer_types", list, None)
    if layer_types is None:
        # Without a list of layers, transformers slides from layer `max_window_layers` on, if asked to at all.
        slides = fields.get("use_sliding_window", bool, False) and window is not None
        first_sliding = fields.get("max_window_layers", int, 28)
        in_use = slides and first_sliding < num_layers
    else:
        if len(layer_types) != num_layers:
            raise InputError(f"{fields.source}: layer_types has {len(layer_types)} entries for {num_layers} layers")
        unsupported = sorted({str(kind) for kind in layer_types} - {"full_attention"})
        if unsupported:
            raise InputError(f"{fields.source}: layer_types {unsupported} not supported; only 'full_attention' is")
        in_use = False
    if in_use:
        raise InputError(
            f"{fields.source}: use_sliding_window is true with sliding_window {window}; sliding-window attention is "
            "not supported"
        )
