"""Logits of every family and option against transformers' torch models, to 1e-4 in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LLAMA, QWEN2, QWEN3, random_tensors, write_model

from selecttkd_jax import models

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}
CASES = {
    "llama": LLAMA,
    "llama-bias-untied-linear": LLAMA
    | {"attention_bias": True, "tie_word_embeddings": False, "rope_parameters": LINEAR},
    "llama-llama3": LLAMA | {"rope_parameters": LLAMA3},
    "qwen2": QWEN2,
    "qwen2-tied-yarn": QWEN2 | {"tie_word_embeddings": True, "rope_parameters": YARN},
    "qwen3-yarn-options": QWEN3
    | {"rope_parameters": YARN | {"attention_factor": 0.8, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False}},
    "qwen3-bias-untied-mscale": QWEN3
    | {
        "attention_bias": True,
        "tie_word_embeddings": False,
        "num_key_value_heads": 3,
        "rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.5},
    },
}
IDS = np.random.default_rng(1).integers(0, 53, (3, 41))


def torch_logits(directory, input_ids, **inputs):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.as_tensor(np.array(input_ids)), **inputs).logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_torch_before_and_after_a_round_trip(tmp_path, name):
    source = write_model(tmp_path / "source", CASES[name], random_tensors(CASES[name]))
    expected = torch_logits(source, IDS)
    pretrained = models.from_pretrained(source)
    ours = models.logits(pretrained, IDS)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    models.save_pretrained(tmp_path / "copy", pretrained)
    np.testing.assert_array_equal(torch_logits(tmp_path / "copy", IDS), expected)


def older_form(config: dict) -> dict:
    """The same config as transformers 4 wrote it."""
    rope = dict(config["rope_parameters"])
    older = {name: value for name, value in config.items() if name != "rope_parameters"}
    older["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    older["rope_scaling"] = None if rope == {"type": "default"} else rope
    return older


@pytest.mark.parametrize("name", CASES)
def test_older_config_form_is_the_same_model(name):
    assert models.decoder_config(older_form(CASES[name])) == models.decoder_config(CASES[name])


def test_older_config_form_equals_torch(tmp_path):
    config = older_form(CASES["qwen2-tied-yarn"])
    source = write_model(tmp_path, config, random_tensors(config))
    np.testing.assert_allclose(
        models.logits(models.from_pretrained(source), IDS), torch_logits(source, IDS), atol=1e-4, rtol=0
    )


def test_config_written_for_fresh_parameters_gives_the_same_logits_in_torch(tmp_path):
    config = models.decoder_config(CASES["qwen3-yarn-options"])
    pretrained = models.Pretrained(config, models.init_params(config, jax.random.key(0)), models.hf_config(config))
    models.save_pretrained(tmp_path / "model", pretrained)
    np.testing.assert_allclose(models.logits(pretrained, IDS), torch_logits(tmp_path / "model", IDS), atol=1e-4, rtol=0)


def test_padding_on_either_side_equals_torch(tmp_path):
    source = write_model(tmp_path, LLAMA, random_tensors(LLAMA))
    mask = np.ones((3, 41), np.int32)
    mask[1, 29:] = 0
    mask[2, :13] = 0
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    expected = torch_logits(
        source, IDS, attention_mask=torch.as_tensor(mask), position_ids=torch.as_tensor(positions).long()
    )
    pretrained = models.from_pretrained(source)
    hidden, _ = models.forward(pretrained.config, pretrained.params, jnp.asarray(IDS), positions, mask)
    ours = models.head_logits(pretrained.config, pretrained.params, hidden)
    np.testing.assert_allclose(np.array(ours)[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)
    assert np.isfinite(ours).all()


def test_packed_segments_equal_torch_on_each_alone(tmp_path):
    source = write_model(tmp_path, QWEN2, random_tensors(QWEN2))
    cut = 17
    segments = np.where(np.arange(41) < cut, 1, 2)[None].astype(np.int32)
    positions = np.where(np.arange(41) < cut, np.arange(41), np.arange(41) - cut)[None].astype(np.int32)
    pretrained = models.from_pretrained(source)
    hidden, _ = models.forward(pretrained.config, pretrained.params, jnp.asarray(IDS[:1]), positions, segments)
    ours = models.head_logits(pretrained.config, pretrained.params, hidden)
    expected = np.concatenate([torch_logits(source, IDS[:1, :cut]), torch_logits(source, IDS[:1, cut:])], axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_reads_what_was_saved_in_low_precision(tmp_path, dtype):
    tensors = random_tensors(LLAMA)
    pretrained = models.from_pretrained(write_model(tmp_path / "source", LLAMA, tensors))
    models.save_pretrained(tmp_path / "low", pretrained, dtype=jnp.dtype(dtype))
    assert json.loads((tmp_path / "low" / "config.json").read_text())["dtype"] == dtype
    np.testing.assert_allclose(
        models.logits(models.from_pretrained(tmp_path / "low"), IDS), torch_logits(tmp_path / "low", IDS), atol=1e-4
    )
