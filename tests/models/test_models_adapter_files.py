"""Adapter files: every field of adapter_config.json is used, known to be without effect, or refused by name."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import LLAMA, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax._errors import InputError


def change_init(drawn):
    return {"init_lora_weights": drawn}, f"init_lora_weights = '{drawn}' is not supported"


REFUSED = [
    *(change_init(drawn) for drawn in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "mica", "lora_ga")),
    ({"use_new_method": True}, "unknown field 'use_new_method'"),
    ({"new_config": {"a": 1}}, "unknown field 'new_config'"),
    ({"use_rslra": True}, "did you mean 'use_rslora'"),
    ({"use_rslora": True}, "use_rslora = True is not supported"),
    ({"use_rslora": "no"}, "use_rslora = 'no' is not supported"),
    ({"bias": "all"}, "bias = 'all' is not supported"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"monteclora_config": {"x": 1}}, "monteclora_config"),
    ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
    ({"peft_type": None}, "has no peft_type"),
    ({"target_modules": "all-linear"}, "target_modules must be a list"),
    ({"target_modules": [["q_proj"]]}, "target_modules must be a list"),
    ({"target_modules": []}, "target_modules must be a list"),
    ({"r": "4"}, "r must be a number, got '4'"),
    ({"r": True}, "r must be a number"),
    ({"r": 0}, "rank must be at least 1"),
    ({"r": 10**9}, r"q_proj.lora_A.weight has shape \(4, 24\), but adapter_config.json asks for \(1000000000, 24\)"),
    ({"lora_alpha": -1}, "alpha must be above 0"),
    ({"use_dora": "yes"}, "use_dora must be true or false"),
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The directory of an adapter that PEFT's loader takes, and the model it is for."""
    directory = tmp_path_factory.mktemp("adapter")
    pretrained = models.from_pretrained(write_model(directory / "base", LLAMA, random_tensors(LLAMA)))
    config = models.LoraConfig(rank=4, alpha=12.0)
    lora = models.init_lora(config, pretrained.config, pretrained.params, jax.random.key(0))
    models.save_adapter(directory / "adapter", config, pretrained.config, lora, str(directory / "base"))
    return directory / "adapter", pretrained.config


def changed(adapter, target, **changes):
    shutil.copytree(adapter[0], target)
    file = target / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return target


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_fields_that_are_not_followed_are_refused_by_name(adapter, tmp_path, change, message):
    directory = changed(adapter, tmp_path / "changed", **change)
    with pytest.raises(InputError, match=message) as caught:
        models.load_adapter(directory, adapter[1])
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_switches_of_newer_releases_pass_where_they_are_off(adapter, tmp_path):
    off = {"use_new_method": False, "new_config": None, "new_pattern": {}, "lora_dropout": 0.1, "megatron_core": "x"}
    models.load_adapter(changed(adapter, tmp_path / "changed", **off), adapter[1])


def test_adapters_that_are_not_finite_or_not_safetensors_are_named(adapter, tmp_path):
    directory = changed(adapter, tmp_path / "changed")
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    name = max(tensors)
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, file)
    with pytest.raises(InputError, match=f"adapter_model.safetensors: tensor {name} holds NaN or infinity"):
        models.load_adapter(directory, adapter[1])
    save_file(tensors | {name: tensors[name].astype(np.int8)}, file)
    with pytest.raises(InputError, match=f"tensor {name} has dtype I8"):
        models.load_adapter(directory, adapter[1])
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="adapter_model.safetensors is truncated or not a safetensors file"):
        models.load_adapter(directory, adapter[1])
    file.unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors does not exist"):
        models.load_adapter(directory, adapter[1])
