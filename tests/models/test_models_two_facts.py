"""Facts that two files of a directory state: read once where they agree, else as transformers does or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import LLAMA, QWEN2, QWEN3, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

IDS = np.random.default_rng(1).integers(0, 53, (2, 40))
INDEX = "model.safetensors.index.json"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def torch_logits(directory):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.as_tensor(IDS)).logits.numpy()


def assert_read_as_transformers_does(directory):
    np.testing.assert_allclose(
        models.logits(models.from_pretrained(directory), IDS), torch_logits(directory), atol=1e-4
    )


def edit(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Weights.


def test_an_index_of_other_shards_beside_a_single_file_is_refused(tmp_path):
    write_model(tmp_path, QWEN2, random_tensors(QWEN2, seed=1), shards=2)
    write_model(tmp_path, QWEN2, random_tensors(QWEN2, seed=2))
    with pytest.raises(InputError, match=r"two sets of weights: model\.safetensors, .*model-00001-of-00002"):
        models.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="two sets of weights"):
        models.check_weights(tmp_path)


@pytest.mark.torch
def test_an_index_of_the_single_file_is_harmless(tmp_path):
    tensors = random_tensors(QWEN2)
    write_model(tmp_path, QWEN2, tensors)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert_read_as_transformers_does(tmp_path)


@pytest.mark.torch
def test_shards_that_the_index_does_not_name_are_left_alone(tmp_path):
    write_model(tmp_path, QWEN2, random_tensors(QWEN2, seed=1), shards=3)
    write_model(tmp_path, QWEN2, random_tensors(QWEN2, seed=2), shards=2)
    assert_read_as_transformers_does(tmp_path)


@pytest.mark.torch
def test_a_tensor_that_the_index_leaves_out_is_read(tmp_path):
    write_model(tmp_path, QWEN2, random_tensors(QWEN2), shards=2)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_read_as_transformers_does(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_model(tmp_path, QWEN2, random_tensors(QWEN2), shards=2)
    second = load_file(tmp_path / "model-00002-of-00002.safetensors")
    first = load_file(tmp_path / "model-00001-of-00002.safetensors")
    name = min(first)
    save_file(second | {name: first[name] + 1}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match=rf"tensor {name} is in .*00001.* and in .*00002"):
        models.from_pretrained(tmp_path)


def test_a_pickle_beside_a_safetensors_file_of_another_name_is_refused(tmp_path):
    write_model(tmp_path, QWEN2, random_tensors(QWEN2))
    (tmp_path / "model.safetensors").rename(tmp_path / "best.safetensors")
    models.check_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"two sets of weights: best\.safetensors, and the pickle pytorch_model\.bin"):
        models.check_weights(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
@pytest.mark.parametrize("names", [["lm_head"], ["model.embed_tokens"], ["lm_head", "model.embed_tokens"]])
def test_a_tied_head_is_read_under_either_name(tmp_path, config, names):
    tensors = random_tensors(config)
    table = tensors.pop("model.embed_tokens.weight")
    write_model(tmp_path / "a", config, tensors | {f"{name}.weight": table for name in names})
    assert_read_as_transformers_does(tmp_path / "a")
    models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"))
    assert_read_as_transformers_does(tmp_path / "b")


def test_an_untied_head_that_is_missing_is_refused_with_a_hint(tmp_path):
    tensors = random_tensors(QWEN2)
    del tensors["lm_head.weight"]
    with pytest.raises(InputError, match=r"first being lm_head\.weight; is the head tied"):
        models.from_pretrained(write_model(tmp_path, QWEN2, tensors))


def test_more_layers_than_there_are_tensors_are_refused_at_once(tmp_path):
    write_model(tmp_path, LLAMA, random_tensors(LLAMA))
    edit(tmp_path / "config.json", num_hidden_layers=10**9)
    for call in (models.check_weights, models.from_pretrained):
        with pytest.raises(InputError, match="num_hidden_layers 1000000000, but there are only 29 tensors"):
            call(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=10**12)
    with pytest.raises(InputError, match="num_hidden_layers must be from 1 to 2147483647"):
        models.read_config(tmp_path)


# Adapters and links.


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    write_model(tmp_path, LLAMA, random_tensors(LLAMA))
    (tmp_path / "adapter_config.json").write_text("{}")
    for call in (models.read_config, models.check_weights, models.from_pretrained):
        with pytest.raises(InputError, match=r"adapter_config\.json beside config\.json: transformers would apply"):
            call(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="is an adapter .*merge it into its base model first"):
        models.read_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path, name):
    write_model(tmp_path / "model", LLAMA, random_tensors(LLAMA))
    outside = tmp_path / "outside"
    if (tmp_path / "model" / name).exists():
        (tmp_path / "model" / name).rename(outside)
    else:
        outside.write_text("secret")
    (tmp_path / "model" / name).symlink_to(outside)
    with pytest.raises(InputError, match=rf"{name} leads out of .*only files inside a model directory are read"):
        models.from_pretrained(tmp_path / "model")


def test_links_inside_the_directory_and_into_the_hub_caches_store_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0f", tmp_path / "models--a--b/blobs"
    write_model(snapshot, LLAMA, random_tensors(LLAMA))
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    models.check_weights(snapshot)
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    models.check_weights(tmp_path / "link")
    (snapshot / "model.safetensors").unlink()
    (blobs / "model.safetensors").rename(snapshot / "kept.safetensors")
    (snapshot / "model.safetensors").symlink_to("kept.safetensors")
    models.check_weights(snapshot)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../other/model.safetensors", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("a\0b", "which no file can be called"),
        ("", "which no file can be called"),
        (7, r"weight_map\.model\.norm\.weight must be the name of a file, got 7"),
        (None, "must be the name of a file, got None"),
        (["a"], "must be the name of a file"),
        (".", "does not exist"),
    ],
)
def test_a_weight_map_names_files_of_its_directory(tmp_path, file, message):
    write_model(tmp_path / "other", LLAMA, random_tensors(LLAMA))
    write_model(tmp_path / "model", LLAMA, random_tensors(LLAMA), shards=2)
    weight_map = json.loads((tmp_path / "model" / INDEX).read_text())["weight_map"]
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": weight_map | {"model.norm.weight": file}}))
    with pytest.raises(InputError, match=message) as caught:
        models.check_weights(tmp_path / "model")
    assert INDEX in str(caught.value)


# Rotary fields in the spelling of transformers 5 and in that of earlier versions.

BOTH = {
    "the older without theta": ({**YARN, "rope_theta": 5e3}, YARN, {"rope_theta": 5e3}),
    "theta as an integer": ({**YARN, "rope_theta": 5000}, {**YARN, "factor": 4}, {"rope_theta": 5e3}),
    "type and rope_type": (
        {**YARN, "rope_theta": 5e3},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_theta": 5e3},
    ),
    "a default written out": ({**YARN, "rope_theta": 5e3, "beta_fast": 32}, YARN, {"rope_theta": 5e3}),
    "the older null": ({**YARN, "rope_theta": 5e3}, None, {"rope_theta": 5e3}),
    "linear": ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}, {"rope_theta": 1e4}),
}


@pytest.mark.torch
@pytest.mark.parametrize(("newer", "older", "beside"), BOTH.values(), ids=BOTH)
def test_equal_rotary_fields_in_both_spellings_pass(tmp_path, newer, older, beside):
    config = LLAMA | {"rope_parameters": newer, "rope_scaling": older, **beside}
    assert_read_as_transformers_does(write_model(tmp_path, config, random_tensors(LLAMA)))


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({**YARN, "rope_theta": 5e3}, YARN),  # transformers takes the older, and 10,000 for its theta
        (YARN, {**YARN, "factor": 2.0}),
        (YARN, {"type": "linear", "factor": 4.0}),
        ({**YARN, "beta_fast": 20.0}, YARN),
    ],
)
def test_different_rotary_fields_in_both_spellings_are_refused(newer, older):
    with pytest.raises(InputError, match="rope_parameters and rope_scaling contradict each other"):
        models.decoder_config(LLAMA | {"rope_parameters": newer, "rope_scaling": older})


# What is written.


def companions(directory: Path):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.6}))
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (directory / "vocab.txt").write_text("a\n")


@pytest.mark.parametrize(("stop_ids", "written"), [((2,), 2), ((3, 2), [3, 2]), (None, 0)])
def test_an_export_is_complete_and_names_its_own_stop_ids(tmp_path, stop_ids, written):
    write_model(tmp_path / "a", LLAMA | {"eos_token_id": 0}, random_tensors(LLAMA))
    companions(tmp_path / "a")
    models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"), stop_ids=stop_ids)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] == written
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": written, "temperature": 0.6}
    for name in ("additional_chat_templates/tool_use.jinja", "vocab.txt"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()
    # It replaces itself, and nothing else that stands among its templates.
    models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"))
    (tmp_path / "b" / "additional_chat_templates" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds additional_chat_templates/notes\.txt"):
        models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"))


def test_generation_fields_of_config_json_stand_for_a_file_that_is_not_there(tmp_path):
    fields = {"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": None, "temperature": 0.5}
    write_model(tmp_path / "a", LLAMA | fields, random_tensors(LLAMA))
    models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"), stop_ids=(2, 3))
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 3], "bos_token_id": 1, "temperature": 0.5}


@pytest.mark.torch
def test_transformers_stops_at_the_ids_that_were_written(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    for name, changes in (("with", {"eos_token_id": 0}), ("without", {})):
        write_model(tmp_path / name, QWEN2 | changes, random_tensors(QWEN2))
        if changes:
            companions(tmp_path / name)
        out = tmp_path / f"{name}-out"
        models.save_pretrained(out, models.from_pretrained(tmp_path / name), stop_ids=(2, 3))
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.generation_config.eos_token_id == [2, 3] == model.config.eos_token_id


# Numbers that are not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named(tmp_path, bad, name):
    tensors = random_tensors(QWEN2)
    tensors[name].flat[-1] = bad
    write_model(tmp_path, QWEN2, tensors)
    models.check_weights(tmp_path)
    with pytest.raises(InputError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        models.from_pretrained(tmp_path)


def test_large_numbers_are_finite_and_too_large_ones_are_named(tmp_path):
    tensors = random_tensors(QWEN2)
    tensors["lm_head.weight"][:] = 3e38  # their sum is not finite
    write_model(tmp_path, QWEN2, tensors)
    for dtype in ("float32", "bfloat16"):
        models.from_pretrained(tmp_path, np.dtype(dtype))
    with pytest.raises(InputError, match=r"lm_head\.weight holds a number too large for float16"):
        models.from_pretrained(tmp_path, np.dtype("float16"))


def test_the_sources_own_copy_is_not_changed(tmp_path):
    write_model(tmp_path / "a", LLAMA, random_tensors(LLAMA))
    companions(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    models.save_pretrained(tmp_path / "b", models.from_pretrained(tmp_path / "a"), stop_ids=(5,))
    shutil.rmtree(tmp_path / "b")
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
