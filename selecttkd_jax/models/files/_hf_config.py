"""Hugging Face `config.json` to `DecoderConfig` and back. Every field is used, known to be without effect, or refused.

Here is what all families share; what sets one apart is in `families`. A field that is passed over in silence is a wrong
model that trains without a word, so a field that neither knows is an error, and so are two fields that contradict each
other.
"""

from typing import Any

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import reading, shorten
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models.families import FAMILIES, Family
from selecttkd_jax.models.files._generation_config import GENERATION_FIELDS
from selecttkd_jax.models.files._hf_rotary import ROTARY_FIELDS, read_rotary, write_rotary

# Beyond this no index fits an int32.
LARGEST_SIZE = 2**31 - 1

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "mlp_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# Read below, each with its own rule; a family's options and fixed fields join them.
USED = (
    *SIZES,
    *ROTARY_FIELDS,
    "model_type",
    "architectures",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
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
WITHOUT_EFFECT = GENERATION_FIELDS | frozenset(
    """
    _name_or_path name_or_path _commit_hash transformers_version transformers.js_config dtype torch_dtype use_cache
    sep_token_id tokenizer_class prefix
    output_attentions output_hidden_states return_dict chunk_size_feed_forward torchscript use_bfloat16 tf_legacy_loss
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation _experts_implementation _experts_implementation_internal _flash_attn_2_enabled
    id2label label2id num_labels problem_type finetuning_task task_specific_params tie_last_hidden_states
    is_llama_config unsloth_version unsloth_fixed
    """.split()
)


def decoder_config(hf_config: dict[str, Any], source: str = "config.json") -> DecoderConfig:
    """The decoder that a Hugging Face `config.json` describes.

    Args:
        hf_config: The file's content, in the form written by transformers 5 or by earlier versions.
        source: Where it came from, for messages.

    Raises:
        InputError: For an unsupported `model_type`, an unknown field, a field this decoder cannot honour, a missing or
            ill-typed field, or two fields that contradict each other.
    """
    with reading(source):
        return _read_fields(_Fields(hf_config, source))


def _read_fields(fields: "_Fields") -> DecoderConfig:
    # What is refused whatever the other fields say.
    family = _find_family(fields)
    fields.refuse_unknown(family)
    fields.refuse_without_support()
    fields.refuse_contradictions(family)
    _check_architecture(fields, family)
    sizes = {ours: fields.get_size(theirs) for theirs, ours in SIZES.items()}
    _check_full_attention(fields, sizes["num_layers"])

    # transformers' own values of fields that a file leaves out.
    defaults = {
        "num_key_value_heads": sizes["num_heads"],
        "head_dim": sizes["hidden_size"] // sizes["num_heads"],
        **family.defaults,
        **dict.fromkeys(family.required, _REQUIRED),
    }
    max_positions = fields.get_size("max_position_embeddings", defaults["max_position_embeddings"])
    flags: dict[str, Any] = dict.fromkeys(family.always, True)
    for option, names in family.options.items():
        flags |= dict.fromkeys(names, fields.get(option, bool, False))
    try:
        return DecoderConfig(
            **sizes,
            **flags,
            num_kv_heads=fields.get_size("num_key_value_heads", defaults["num_key_value_heads"]),
            head_dim=fields.get_size("head_dim", defaults["head_dim"]),
            norm_eps=float(fields.get("rms_norm_eps", float, 1e-6)),
            tied_head=fields.get("tie_word_embeddings", bool, False),
            rotary=read_rotary(fields.values, max_positions, fields.source),
            max_positions=max_positions,
            init_scale=float(fields.get("initializer_range", float, 0.02)),
        )
    except InputError as error:
        raise error if str(error).startswith(fields.source) else InputError(f"{fields.source}: {error}") from None


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json`, in the form of transformers 5, for a decoder that was not read from one.

    Raises:
        InputError: If no family has the decoder's combination of flags.
    """
    for family in FAMILIES.values():
        described = {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied_head,
            "max_position_embeddings": config.max_positions,
            "initializer_range": config.init_scale,
            "rope_parameters": write_rotary(config.rotary),
            **{option: all(getattr(config, flag) for flag in flags) for option, flags in family.options.items()},
        }
        if decoder_config(described) == config:
            return described
    raise InputError(f"no model_type among {', '.join(FAMILIES)} has this combination of options: {config}")


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
            raise InputError(f"{self.source}: {name} must be {kind.__name__}, got {shorten(value)}")
        return value

    def get_size(self, name: str, default: Any = _REQUIRED) -> int:
        """The field's value as the size of an array; `default` where it is missing or null."""
        value = self.get(name, int, default)
        if not 1 <= value <= LARGEST_SIZE:
            raise InputError(f"{self.source}: {name} must be from 1 to {LARGEST_SIZE}, got {value}")
        return value

    def refuse_unknown(self, family: Family) -> None:
        meant = [*USED, *family.options, *family.fixed, *NEUTRAL]
        for name in self.values:
            if name not in meant and name not in WITHOUT_EFFECT:
                raise InputError(
                    f"{self.source}: unknown field {shorten(name)}{did_you_mean(name, meant)}; it might change "
                    "the model, so remove it from config.json if you know that it does not"
                )

    def refuse_without_support(self) -> None:
        for name, neutral in NEUTRAL.items():
            value = self.values.get(name, neutral[0])
            if not any(_is_same(value, allowed) for allowed in neutral):
                raise InputError(f"{self.source}: {name} {shorten(value)} is not supported; only {neutral[0]!r} is")

    def refuse_contradictions(self, family: Family) -> None:
        for name, only in family.fixed.items():
            value = self.values.get(name, only)
            if not _is_same(value, only):
                raise InputError(
                    f"{self.source}: {name} {shorten(value)} contradicts model_type {family.model_type!r}, whose "
                    f"models have {only!r}"
                )


def _is_same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal; 1 is not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _find_family(fields: _Fields) -> Family:
    model_type = fields.get("model_type", str)
    if model_type not in FAMILIES:
        raise InputError(
            f"{fields.source}: model_type {shorten(model_type)} is not supported; supported are {', '.join(FAMILIES)}"
            f"{did_you_mean(model_type, FAMILIES)}"
        )
    return FAMILIES[model_type]


def _check_architecture(fields: _Fields, family: Family) -> None:
    architectures = fields.get("architectures", list, [])
    if architectures and architectures != [family.architecture]:
        raise InputError(
            f"{fields.source}: architectures {shorten(architectures)} is not supported; expected "
            f"[{family.architecture!r}]"
        )


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
            raise InputError(
                f"{fields.source}: layer_types {shorten(unsupported)} not supported; only 'full_attention' is"
            )
        in_use = False
    if in_use:
        raise InputError(
            f"{fields.source}: use_sliding_window is true with sliding_window {window}; sliding-window attention is "
            "not supported"
        )
