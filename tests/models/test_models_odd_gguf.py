"""GGUF files with odd metadata: converted to what they say, or refused in one line that names file and key."""

import json
import struct

import gguf
import numpy as np
import pytest
from test_models_gguf import MERGES, TOKENS, gguf_name
from tiny_models import QWEN2, random_tensors

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

GOOD = {
    "qwen2.block_count": 3,
    "qwen2.context_length": 128,
    "qwen2.embedding_length": 24,
    "qwen2.feed_forward_length": 37,
    "qwen2.attention.head_count": 6,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.attention.key_length": 10,
    "qwen2.attention.value_length": 10,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-5,
    "qwen2.rope.freq_base": 500.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
}


def write(path, changes=None, tensors=None, quantised=None):
    """A file with what is good, changed; a value of None leaves the key out."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, value in (GOOD | (changes or {})).items():
        if value is None or key == "general.architecture":
            continue
        add = {bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, tensor in (random_tensors(QWEN2) if tensors is None else tensors).items():
        if quantised is not None and tensor.ndim == 2:
            per, size = gguf.GGML_QUANT_SIZES[quantised]
            stored = np.zeros((tensor.shape[0], -(-tensor.shape[1] // per) * size), np.uint8)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_refused(path, message, target):
    with pytest.raises(InputError, match=message) as caught:
        models.convert_gguf(path, target)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < 600
    assert not target.exists()


def test_what_all_of_them_change_is_good(tmp_path):
    models.convert_gguf(write(tmp_path / "a.gguf"), tmp_path / "a")
    models.from_pretrained(tmp_path / "a")


T = "tokenizer.ggml."
ODD = {
    # Missing.
    "no_layers": ({"qwen2.block_count": None}, "has no qwen2.block_count"),
    "no_heads": ({"qwen2.attention.head_count": None}, "has no qwen2.attention.head_count"),
    "no_tokens": ({f"{T}tokens": None, f"{T}bos_token_id": None, f"{T}eos_token_id": None}, "holds no tokenizer"),
    "no_merges": ({f"{T}merges": None}, "has no merges"),
    "no_rule": ({f"{T}pre": None}, r"does not say how its tokenizer splits text \(tokenizer.ggml.pre\)"),
    "no_bos": ({f"{T}add_bos_token": True, f"{T}bos_token_id": None}, "add_bos_token is true, but there is no"),
    # Wrong types.
    "text_for_layers": ({"qwen2.block_count": "3"}, "qwen2.block_count must be int, got '3'"),
    "float_for_heads": ({"qwen2.attention.head_count": 6.0}, "head_count must be int, got 6.0"),
    "text_for_eps": ({"qwen2.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon must be float"),
    "text_for_theta": ({"qwen2.rope.freq_base": "x"}, "rope.freq_base must be float"),
    "text_for_id": ({f"{T}bos_token_id": "1"}, "bos_token_id must be int"),
    "number_for_template": ({"tokenizer.chat_template": 7}, "chat_template must be str, got 7"),
    "numbers_for_tokens": ({f"{T}tokens": [1, 2]}, "tokens must be a list of texts"),
    "numbers_for_merges": ({f"{T}merges": [1, 2]}, "merges must be a list of texts"),
    "number_for_model": ({f"{T}model": 7}, "tokenizer.ggml.model must be str"),
    "text_for_bos": ({f"{T}add_bos_token": "yes"}, "add_bos_token must be bool"),
    "other_widths": (
        {"qwen2.feed_forward_length": [37, 37, 40]},
        r"feed_forward_length must be int, got \[37, 37",
    ),
    # Out of bounds.
    "zero_heads": ({"qwen2.attention.head_count": 0}, "head_count must be above 0, got 0"),
    "zero_kv_heads": ({"qwen2.attention.head_count_kv": 0}, "head_count_kv must be above 0"),
    "negative_width": ({"qwen2.embedding_length": -24}, "embedding_length must be above 0"),
    "many_layers": ({"qwen2.block_count": 10**9}, "block_count is 1000000000, but there are only 39 tensors"),
    "large_id": ({f"{T}eos_token_id": 999}, "eos_token_id is 999, and there are 53 tokens"),
    "negative_id": ({f"{T}bos_token_id": -1}, "bos_token_id is -1"),
    "large_eot": ({f"{T}eot_token_id": 53}, "eot_token_id is 53"),
    "nan_theta": ({"qwen2.rope.freq_base": float("nan")}, "theta must be a positive number, got nan"),
    "nan_eps": ({"qwen2.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon must be above 0, got nan"),
    "infinite_factor": (
        {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": float("inf")},
        "factor must be a positive number",
    ),
    # Contradictions.
    "vocabulary": ({"qwen2.vocab_size": 52}, "vocab_size 52 differs from the rows of the embedding 53"),
    "more_tokens": ({f"{T}tokens": [*TOKENS, "x1"], f"{T}token_type": None}, "54 tokens, and only 53 rows"),
    "fewer_types": ({f"{T}token_type": [3, 3]}, "token_type has 2 entries for 53 tokens"),
    "token_twice": ({f"{T}tokens": [*TOKENS[:-1], "the"]}, "the token 'the' is there twice"),
    "merge_of_one": ({f"{T}merges": ["the"]}, "merges has 'the', which joins no two tokens"),
    "merge_of_unknown": ({f"{T}merges": ["q q"]}, "merges has 'q q', which joins no two tokens"),
    "head_dim": ({"qwen2.attention.value_length": 12}, "value_length 12 differs from the head dim 10"),
    "factor_of_no_type": ({"qwen2.rope.scaling.factor": 4.0}, "factor is 4.0, but there is no rope.scaling.type"),
    # Not followed.
    "unknown_type": ({"qwen2.rope.scaling.type": "longrope"}, "rope_type 'longrope' is not supported"),
    "end_token": ({f"{T}add_eos_token": True}, "add_eos_token True is not supported; only False is"),
    "unknown_key": ({f"{T}split_words": True}, "unknown metadata key tokenizer.ggml.split_words"),
    "misspelt": ({f"{T}add_bos_tokn": True}, "did you mean 'tokenizer.ggml.add_bos_token'"),
    "adapter": ({"adapter.type": "lora"}, "holds an adapter"),
    "no_model": ({"general.type": "mmproj"}, "general.type calls 'mmproj'"),
    "split": ({"split.count": 4}, "is one of 4 parts"),
    "spm": ({f"{T}model": "llama"}, "tokenizer model 'llama' is not supported"),
    "template_name": ({"tokenizer.chat_template.../../x": "a"}, "is no name of a chat template"),
}


@pytest.mark.parametrize(("changes", "message"), ODD.values(), ids=ODD)
def test_odd_metadata_are_refused_by_key(tmp_path, changes, message):
    assert_refused(write(tmp_path / "a.gguf", changes), message, tmp_path / "a")


def test_what_changes_nothing_passes(tmp_path):
    models.convert_gguf(write(tmp_path / "a.gguf"), tmp_path / "a")
    harmless = {
        "qwen2.attention.head_count": [6, 6, 6],
        "qwen2.vocab_size": 53,
        f"{T}add_eos_token": False,
        f"{T}add_space_prefix": True,
        f"{T}fim_pre_token_id": 4,
        "someone.quantized_by": "me",
        "general.type": "model",
    }
    models.convert_gguf(write(tmp_path / "b.gguf", harmless), tmp_path / "b")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_named_templates_and_all_stop_ids_are_carried_over(tmp_path):
    from transformers import AutoTokenizer

    templates = {"tokenizer.chat_template": "{{ 1 }}", "tokenizer.chat_template.tool_use": "{{ 2 }}"}
    ends = {f"{T}eot_token_id": 1, f"{T}eom_token_id": 2}
    listed = {"tokenizer.chat_templates": ["tool_use"]}
    models.convert_gguf(write(tmp_path / "a.gguf", templates | listed | ends), tmp_path / "a")
    assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    generation = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 1, 2]


def test_the_card_says_what_the_file_says_of_itself_and_no_more(tmp_path):
    said = {"general.name": "Small", "general.license": "apache-2.0", "general.organization": "a\n# b"}
    models.convert_gguf(write(tmp_path / "a.gguf", said), tmp_path / "a")
    card = (tmp_path / "a/README.md").read_text()
    assert models.find_origin(tmp_path / "a").license == {"license": "apache-2.0"}
    assert "# Small" in card and "# b" not in card and "base_model" not in card
    pruned = models.prune_layers(models.from_pretrained(tmp_path / "a"), (0,))
    models.save_pretrained(tmp_path / "b", pruned, card=models.pruned_card(tmp_path / "a", (0,), 3))
    assert models.find_origin(tmp_path / "b").license == {"license": "apache-2.0"}
    assert "# a with 1 of 3 layers" in (tmp_path / "b/README.md").read_text()


@pytest.mark.parametrize("kind", ["I8", "I32"])
def test_what_cannot_be_dequantised_is_refused_before_anything_is_written(tmp_path, kind):
    path = write(tmp_path / "a.gguf", quantised=gguf.GGMLQuantizationType[kind])
    assert_refused(path, rf"is stored as {kind}, which the package gguf cannot read", tmp_path / "a")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, bad):
    tensors = random_tensors(QWEN2)
    tensors["model.norm.weight"][3] = bad
    path = write(tmp_path / "a.gguf", tensors=tensors)
    assert_refused(path, r"tensor output_norm\.weight holds NaN or infinity", tmp_path / "a")


def text(value):
    return struct.pack("<Q", len(value)) + value


def file_of(*fields, tensors=0, count=None, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(fields) if count is None else count) + b"".join(fields)


TORN = {
    "a list longer than the file": file_of(text(b"a") + struct.pack("<IIQ", 9, 0, 2**40), count=1) + bytes(64),
    "texts longer than the file": file_of(text(b"a") + struct.pack("<IIQ", 9, 8, 2**40), count=1) + bytes(64),
    "lists of lists": file_of(text(b"a") + struct.pack("<IIQ", 9, 9, 2) * 2000),
    "more keys than the file": file_of(count=2**60) + bytes(64),
    "more tensors than the file": file_of(text(b"a") + struct.pack("<II", 4, 1), tensors=2**60),
    "a text longer than the file": file_of(struct.pack("<Q", 2**60) + b"a" * 64),
    "an unknown type": file_of(text(b"a") + struct.pack("<II", 99, 1)),
    "an unknown version": file_of(version=99),
    "no alignment": file_of(text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "no text": file_of(text(b"\xff\xfe") + struct.pack("<II", 4, 1)),
    "no text as a value": file_of(text(b"a") + struct.pack("<I", 8) + text(b"\xff\xfe")),
    "a tensor beyond any size": file_of(tensors=1) + text(b"x") + struct.pack("<IQQIQ", 2, 2**60, 2**60, 0, 0),
    "a tensor of an unknown type": file_of(tensors=1) + text(b"x") + struct.pack("<IQIQ", 1, 8, 77, 0) + bytes(64),
    "only the letters": b"GGUF",
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_files_that_promise_more_than_they_hold_are_refused_at_once(tmp_path, content):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert_refused(path, "is truncated or not a GGUF file", tmp_path / "a")


def test_every_truncation_is_refused(tmp_path):
    whole = write(tmp_path / "whole.gguf").read_bytes()
    for length in (*range(4, 200, 7), *range(200, len(whole) - 1, len(whole) // 40), len(whole) - 40):
        path = tmp_path / "torn.gguf"
        path.write_bytes(whole[:length])
        assert_refused(path, "is truncated or not a GGUF file|cannot be", tmp_path / "a")
