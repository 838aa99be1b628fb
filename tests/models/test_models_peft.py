"""Adapters against PEFT on transformers' torch models: files both ways, logits to 1e-4, gradients, merged exports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import LLAMA, QWEN2, random_tensors, write_model

from selecttkd_jax import models

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.torch,
    # PEFT asks transformers for it by an old name; not ours to mend.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

IDS = np.random.default_rng(1).integers(0, 53, (2, 17))
# Qwen2 has biases on q, k and v, which DoRA must leave alone.
CASES = {
    "llama-lora": (LLAMA, models.LoraConfig(rank=4, alpha=12.0)),
    "llama-dora": (LLAMA, models.LoraConfig(rank=3, alpha=5.0, dora=True)),
    "qwen2-lora": (QWEN2, models.LoraConfig(rank=5, alpha=4.0, targets=("v_proj", "o_proj", "down_proj"))),
    "qwen2-dora": (QWEN2, models.LoraConfig(rank=2, alpha=6.0, dora=True)),
}


def torch_base(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def torch_logits(model):
    with torch.no_grad():
        return model(torch.as_tensor(IDS)).logits.numpy()


def peft_model(directory, config):
    """A PEFT model whose adapters are not what they start from."""
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        use_dora=config.dora,
    )
    model = peft.get_peft_model(torch_base(directory), settings).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
        elif "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """A base directory, the adapters' config, a PEFT model, and our base and adapters read from its files."""
    hf_config, config = CASES[request.param]
    base = write_model(tmp_path / "base", hf_config, random_tensors(hf_config))
    theirs = peft_model(base, config)
    theirs.save_pretrained(tmp_path / "theirs")
    pretrained = models.from_pretrained(base)
    read, lora = models.load_adapter(tmp_path / "theirs", pretrained.config)
    assert read == config
    return tmp_path, config, theirs, pretrained, lora


def logits(pretrained, params):
    return models.logits(models.Pretrained(pretrained.config, params, {}), IDS)


def test_logits_files_and_merged_exports_equal_pefts(case):
    directory, config, theirs, pretrained, lora = case
    expected = torch_logits(theirs)
    assert np.abs(expected - torch_logits(torch_base(directory / "base"))).max() > 0.1
    ours = logits(pretrained, models.attach_adapters(pretrained.params, lora, config))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)

    models.save_adapter(directory / "ours", config, pretrained.config, lora, str(directory / "base"))
    written, original = (load_file(directory / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert sorted(written) == sorted(original)
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(directory / "ours", dtype=torch.float32)
    np.testing.assert_allclose(torch_logits(loaded.eval()), expected, atol=1e-5, rtol=0)

    merged = models.Pretrained(
        pretrained.config, models.merge_lora(pretrained.params, lora, config), pretrained.hf_config
    )
    np.testing.assert_allclose(models.logits(merged, IDS), expected, atol=1e-4, rtol=0)
    models.save_pretrained(directory / "merged", merged)
    np.testing.assert_allclose(torch_logits(torch_base(directory / "merged")), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["llama-lora", "qwen2-dora"], indirect=True)
def test_gradients_of_the_adapters_equal_autograds(case):
    directory, config, theirs, pretrained, lora = case
    target = np.random.default_rng(2).normal(size=(2, 17, 53)).astype(np.float32)

    def loss(lora):
        return jnp.sum(logits(pretrained, models.attach_adapters(pretrained.params, lora, config)) * target) / 100

    gradient = jax.jit(jax.grad(loss))(lora)
    (torch.sum(theirs(torch.as_tensor(IDS)).logits * torch.as_tensor(target)) / 100).backward()
    # Written as if they were adapters, the gradients have PEFT's names and layouts.
    models.save_adapter(directory / "gradient", config, pretrained.config, gradient, "")
    ours = load_file(directory / "gradient" / "adapter_model.safetensors")
    expected = {
        name.replace(".default", "").replace("_vector.weight", "_vector"): parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert sorted(ours) == sorted(expected)
    for name, value in expected.items():
        assert np.abs(value).max() > 1e-3
        np.testing.assert_allclose(ours[name], value, atol=1e-4 * np.abs(value).max(), rtol=1e-3, err_msg=name)


def test_fresh_adapters_start_as_pefts_do(tmp_path):
    base = write_model(tmp_path, LLAMA, random_tensors(LLAMA))
    config = models.LoraConfig(rank=8, dora=True, targets=("o_proj", "gate_proj"))
    pretrained = models.from_pretrained(base)
    lora = models.init_lora(config, pretrained.config, pretrained.params, jax.random.key(0))
    models.save_adapter(tmp_path / "adapter", config, pretrained.config, lora, str(base))
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=list(config.targets), use_dora=True)
    peft.get_peft_model(torch_base(base), settings).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        if "lora_A" in name:
            bound = value.shape[1] ** -0.5
            assert 0.95 * bound < np.abs(ours[name]).max() <= bound and 0.95 * bound < np.abs(value).max() <= bound
        else:
            np.testing.assert_allclose(ours[name], value, atol=1e-6)


@pytest.mark.parametrize("drawn", [True, False, "gaussian", "eva", "orthogonal"])
def test_adapters_that_leave_the_base_alone_are_read_however_they_were_drawn(tmp_path, drawn):
    base = write_model(tmp_path / "base", LLAMA, random_tensors(LLAMA))
    theirs = peft_model(base, models.LoraConfig(rank=4, alpha=12.0))
    theirs.peft_config["default"].init_lora_weights = drawn
    if drawn == "eva":
        theirs.peft_config["default"].eva_config = peft.EvaConfig()
    theirs.save_pretrained(tmp_path / "theirs")
    # What PEFT computes once it has read its own files is the oracle, not the model that wrote them.
    again = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "theirs").eval()
    pretrained = models.from_pretrained(base)
    config, lora = models.load_adapter(tmp_path / "theirs", pretrained.config)
    ours = logits(pretrained, models.attach_adapters(pretrained.params, lora, config))
    np.testing.assert_allclose(ours, torch_logits(again), atol=1e-4, rtol=0)


def test_every_field_that_peft_writes_has_a_rule():
    from dataclasses import fields

    from selecttkd_jax.models.files._peft_config import FOLLOWED, USED, WITHOUT_EFFECT

    assert {entry.name for entry in fields(peft.LoraConfig)} <= {*USED, *FOLLOWED, *WITHOUT_EFFECT}
