"""config.json: every field is used, known to be without effect, or refused by name."""

import json
from dataclasses import fields, replace

import pytest
from tiny_models import LLAMA, QWEN2, QWEN3

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.models.families import FAMILIES

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# (change to a good config, part of the message)
REFUSED = [
    ({"model_type": "gemma2"}, "model_type 'gemma2' is not supported; supported are llama, qwen2, qwen3"),
    ({"model_type": "qwen"}, "did you mean 'qwen3'"),
    ({"model_type": None}, "has no model_type"),
    ({"rms_norm_epsilon": 1e-5}, "did you mean 'rms_norm_eps'"),
    ({"logit_scale": 2.0}, "unknown field 'logit_scale'"),
    ({"hidden_size": None}, "has no hidden_size"),
    ({"hidden_size": "24"}, "hidden_size must be int"),
    ({"hidden_size": True}, "hidden_size must be int"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1"),
    ({"num_attention_heads": 0}, "num_attention_heads must be from 1"),
    ({"num_key_value_heads": 4}, "num_heads must be a multiple of num_kv_heads, got 6 and 4"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be bool"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; only 'silu' is"),
    ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
    ({"pretraining_tp": 2}, "pretraining_tp 2"),
    ({"mlp_bias": True}, "mlp_bias True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window is true"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types ['sliding_attention']"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    ({"rope_theta": 10.0}, "rope_theta is 10.0 at top level but 500.0 in rope_parameters"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters and rope_scaling contradict"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
    ({"rope_parameters": {"rope_type": "lama3"}}, "did you mean 'llama3'"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
    ({"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "contradicts rope_type"),
    ({"rope_parameters": {"rope_type": "linear", "factr": 2.0}}, "did you mean 'factor'"),
    ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "rope_type 'default' takes no 'factor'"),
    ({"rope_parameters": YARN | {"low_freq_factor": 1.0}}, "rope_type 'yarn' takes no 'low_freq_factor'"),
    ({"rope_parameters": YARN | {"factor": "4"}}, "factor must be a number"),
    ({"rope_parameters": YARN | {"factor": -1.0}}, "factor must be a positive number"),
    ({"rope_parameters": YARN, "original_max_position_embeddings": 64}, "is 64 at top level but 32"),
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(change, message):
    with pytest.raises(InputError) as error:
        models.decoder_config(LLAMA | change, "dir/config.json")
    assert message in str(error.value)
    assert str(error.value).startswith("dir/config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [False, None, 1, "yes"])
def test_qwen2_refuses_to_be_without_the_biases_it_always_has(value):
    with pytest.raises(InputError, match=rf"x: attention_bias {value!r} contradicts model_type 'qwen2'.* True"):
        models.decoder_config(QWEN2 | {"attention_bias": value}, "x")
    assert models.decoder_config(QWEN2 | {"attention_bias": True}) == models.decoder_config(QWEN2)


def test_qwen_needs_its_own_head_sizes():
    for field, config in (("head_dim", QWEN3), ("num_key_value_heads", QWEN2)):
        with pytest.raises(InputError, match=f"has no {field}"):
            models.decoder_config({name: value for name, value in config.items() if name != field})


HARMLESS = {
    "_name_or_path": "x",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "is_llama_config": True,
    "transformers.js_config": {},
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 1,
    "rope_scaling": None,
    "temperature": 0.7,
}


def test_fields_without_effect_change_nothing():
    assert models.decoder_config(LLAMA | HARMLESS) == models.decoder_config(LLAMA)


def test_sliding_window_beyond_the_last_layer_is_not_in_use():
    change = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert models.decoder_config(QWEN2 | change) == models.decoder_config(QWEN2)


def test_defaults_are_those_of_transformers():
    short = {name: LLAMA[name] for name in ("model_type", "vocab_size", "hidden_size", "intermediate_size")}
    config = models.decoder_config(short | {"num_hidden_layers": 3, "num_attention_heads": 6})
    assert (config.num_kv_heads, config.head_dim, config.norm_eps, config.tied_head) == (6, 4, 1e-6, False)
    assert config.rotary == models.RotaryConfig(theta=10_000.0)


@pytest.mark.parametrize("hf_config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_what_a_file_leaves_out_is_what_transformers_fills_in(hf_config):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(hf_config["model_type"])
    optional = {
        "rms_norm_eps": "norm_eps",
        "max_position_embeddings": "max_positions",
        "initializer_range": "init_scale",
        "tie_word_embeddings": "tied_head",
    }
    ours = models.decoder_config({name: value for name, value in hf_config.items() if name not in optional})
    for name, field in optional.items():
        assert getattr(ours, field) == getattr(theirs, name), name


@pytest.mark.parametrize(
    "hf_config",
    [
        LLAMA,
        LLAMA | {"attention_bias": True},
        LLAMA | {"rope_parameters": YARN | {"mscale": 2.0}},
        QWEN2,
        QWEN3,
        QWEN3 | {"attention_bias": True},
    ],
)
def test_own_config_reads_back(hf_config):
    config = models.decoder_config(hf_config)
    written = json.loads(json.dumps(models.hf_config(config)))
    assert written["model_type"] == hf_config["model_type"]
    assert models.decoder_config(written) == config


@pytest.mark.parametrize("flags", [{"o_bias": True}, {"qkv_bias": True, "qk_norm": True}])
def test_flags_that_no_family_combines_are_refused(flags):
    config = replace(models.decoder_config(LLAMA), **flags)
    with pytest.raises(InputError, match="no model_type among llama, qwen2, qwen3 has this combination of options"):
        models.hf_config(config)


def test_every_family_speaks_of_flags_that_a_decoder_has():
    flags = {entry.name for entry in fields(models.DecoderConfig) if entry.type is bool} - {"tied_head"}
    for name, family in FAMILIES.items():
        said = list(family.always) + [flag for names in family.options.values() for flag in names]
        assert set(said) <= flags and len(set(said)) == len(said), name
        assert family.model_type == name


def test_read_config_refuses_what_is_not_a_model(tmp_path):
    cases = {
        "is an empty directory": tmp_path / "empty",
        "does not exist": tmp_path / "missing",
        "has no config.json": tmp_path / "other",
        "neither a directory here nor a model": "no-such-owner/no-such-model",
        "convert it first: selecttkd convert": tmp_path / "x.gguf",
        "not valid JSON": tmp_path / "broken",
        "must hold a JSON object": tmp_path / "list",
    }
    for name in ("empty", "other", "broken", "list"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "list" / "config.json").write_text("[]")
    for message, path in cases.items():
        with pytest.raises(InputError, match=message):
            models.read_config(path)
