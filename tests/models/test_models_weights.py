"""Loading and saving: shards, dtypes, what is refused, pruning, replacing a directory."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_models import LLAMA, QWEN2, QWEN3, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.models.files import _weights as weights
from selecttkd_jax.models.files._shards import Stored


def assert_same_params(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_each_tensor_lands_where_it_belongs(tmp_path):
    tensors = random_tensors(QWEN3)
    params = models.from_pretrained(write_model(tmp_path, QWEN3, tensors)).params
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    query = tensors["model.layers.2.self_attn.q_proj.weight"]
    # Row 13 of the torch matrix is element 3 of head 1.
    np.testing.assert_array_equal(attention["q"]["kernel"][2, :, 1, 3], query[13])
    out = tensors["model.layers.1.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(attention["o"]["kernel"][1, 1, 3], out[:, 13])
    np.testing.assert_array_equal(mlp["down"]["kernel"][0], tensors["model.layers.0.mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(attention["k_norm"]["scale"][2], tensors["model.layers.2.self_attn.k_norm.weight"])
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])
    assert "head" not in params


@pytest.mark.parametrize("hf_config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_export_writes_the_tensors_that_were_read(tmp_path, hf_config):
    tensors = random_tensors(hf_config)
    pretrained = models.from_pretrained(write_model(tmp_path / "a", hf_config, tensors, shards=3))
    models.save_pretrained(tmp_path / "b", pretrained)
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    with safe_open(tmp_path / "b" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_sharded_export_reads_back(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 20_000)
    pretrained = models.from_pretrained(write_model(tmp_path / "a", QWEN2, random_tensors(QWEN2)))
    models.save_pretrained(tmp_path / "b", pretrained)
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "b" / file).stat().st_size < 22_000 for file in files)
    assert_same_params(models.from_pretrained(tmp_path / "b").params, pretrained.params)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16], ids=["to-float32", "to-bfloat16"])
def test_any_stored_dtype_is_read_as_any_other(tmp_path, stored, wanted):
    tensors = {name: tensor.astype(stored) for name, tensor in random_tensors(LLAMA).items()}
    params = models.from_pretrained(write_model(tmp_path, LLAMA, tensors), dtype=wanted).params
    assert all(leaf.dtype == wanted for leaf in jax.tree.leaves(params))
    up = tensors["model.layers.1.mlp.up_proj.weight"].astype(wanted)
    np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][1], up.T)


def test_a_stored_copy_of_the_tied_head_is_passed_over(tmp_path):
    tensors = random_tensors(LLAMA)
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    pretrained = models.from_pretrained(write_model(tmp_path / "a", LLAMA, twice))
    models.save_pretrained(tmp_path / "b", pretrained)
    assert "lm_head.weight" not in load_file(tmp_path / "b" / "model.safetensors")


def test_a_different_head_under_a_tied_config_is_refused(tmp_path):
    tensors = random_tensors(LLAMA)
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(InputError, match="lm_head.weight differs from the embedding"):
        models.from_pretrained(write_model(tmp_path, LLAMA, other))


def damaged(directory, case):
    tensors = random_tensors(QWEN2)
    name = "model.layers.1.mlp.up_proj.weight"
    if case == "missing":
        del tensors[name]
    elif case == "extra":
        tensors["model.layers.3.mlp.up_proj.weight"] = tensors[name]
    elif case == "shape":
        tensors[name] = tensors[name].T.copy()
    elif case == "dtype":
        tensors[name] = tensors[name].astype(np.int8)
    write_model(directory, QWEN2, tensors, shards=2 if "shard" in case else 1)
    file = directory / "model.safetensors"
    if case == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif case == "garbage":
        file.write_bytes(b"not safetensors")
    elif case == "empty file":
        file.write_bytes(b"")
    elif case == "no weights":
        file.unlink()
        (directory / "pytorch_model.bin").write_bytes(b"")
    elif case == "no shard":
        (directory / "model-00002-of-00002.safetensors").unlink()
    elif case == "shard lacks":
        index = directory / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
        content["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
        index.write_text(json.dumps(content))
    elif case == "no index for shards":
        (directory / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "missing 1 of 39 tensors, the first being model.layers.1.mlp.up_proj.weight"),
        ("extra", "unknown tensor model.layers.3.mlp.up_proj.weight"),
        ("shape", r"up_proj.weight has shape \(24, 37\), but config.json asks for \(37, 24\)"),
        ("dtype", "up_proj.weight has dtype I8"),
        ("truncated", "model.safetensors is truncated"),
        ("garbage", "model.safetensors is truncated or not a safetensors file"),
        ("empty file", "model.safetensors is truncated or not a safetensors file"),
        ("no weights", "no .*safetensors file; pytorch_model.bin is a pickle"),
        ("no shard", "model-00002-of-00002.safetensors does not exist"),
        ("shard lacks", "has no tensor"),
        ("no index for shards", "2 safetensors files but no model.safetensors.index.json"),
    ],
)
def test_damaged_weights_are_named_before_anything_is_loaded(tmp_path, monkeypatch, case, message):
    damaged(tmp_path, case)
    monkeypatch.setattr(Stored, "read", lambda *args: pytest.fail("read a tensor"))
    for call in (models.check_weights, models.from_pretrained):
        with pytest.raises(InputError, match=message):
            call(tmp_path)


def test_tokenizer_and_generation_files_travel_along(tmp_path):
    source = write_model(tmp_path / "a", LLAMA, random_tensors(LLAMA))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (source / name).write_text(f"content of {name}")
    (source / "optimizer.pt").write_text("x")
    models.save_pretrained(tmp_path / "b", models.from_pretrained(source))
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {p.name for p in source.iterdir()} - {"optimizer.pt"}
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "content of tokenizer.json"


def test_saving_replaces_a_model_but_nothing_else(tmp_path):
    source = write_model(tmp_path / "a", LLAMA, random_tensors(LLAMA), shards=2)
    pretrained = models.from_pretrained(source)
    models.save_pretrained(source, pretrained)
    assert {path.name for path in source.iterdir()} == {"config.json", "model.safetensors"}
    assert_same_params(models.from_pretrained(source).params, pretrained.params)
    (source / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds thesis.tex"):
        models.save_pretrained(source, pretrained)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a directory"):
        models.save_pretrained(tmp_path / "file", pretrained)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "file"}


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    source = write_model(tmp_path / "a", LLAMA, random_tensors(LLAMA))
    pretrained = models.from_pretrained(source)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save_pretrained(source, pretrained)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert_same_params(models.from_pretrained(source).params, pretrained.params)


def test_pruned_model_has_the_named_layers(tmp_path):
    config = LLAMA | {"layer_types": ["full_attention"] * 3}
    teacher = models.from_pretrained(write_model(tmp_path / "a", config, random_tensors(config)))
    student = models.prune_layers(teacher, [0, 2])
    assert student.config.num_layers == 2
    kernel = student.params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, teacher.params["layers"]["mlp"]["up"]["kernel"][np.array([0, 2])])
    models.save_pretrained(tmp_path / "b", student)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["num_hidden_layers"] == 2
    assert written["layer_types"] == ["full_attention"] * 2
    assert_same_params(models.from_pretrained(tmp_path / "b").params, student.params)
    assert teacher.config.num_layers == 3


@pytest.mark.parametrize(
    "keep, message", [([], "no layer"), ([0, 3], "from 0 to 2"), ([1, 1], "rising"), ([-1], "0 to 2")]
)
def test_pruning_refuses(tmp_path, keep, message):
    teacher = models.from_pretrained(write_model(tmp_path, LLAMA, random_tensors(LLAMA)))
    with pytest.raises(InputError, match=message):
        models.prune_layers(teacher, keep)


def test_evenly_spaced_layers():
    assert models.evenly_spaced_layers(30, 1) == (0,)
    assert models.evenly_spaced_layers(7, 4) == (0, 2, 4, 6)
    assert models.evenly_spaced_layers(5, 5) == (0, 1, 2, 3, 4)
    for count in range(2, 31):
        layers = models.evenly_spaced_layers(30, count)
        assert len(set(layers)) == count
        assert (layers[0], layers[-1]) == (0, 29)
    with pytest.raises(InputError, match="between 1 and 3"):
        models.evenly_spaced_layers(3, 4)


PEAK = """
import resource, sys
import jax
from selecttkd_jax import models
jax.block_until_ready(jax.numpy.zeros(8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pretrained = models.from_pretrained(sys.argv[1])
jax.block_until_ready(pretrained.params)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 4 * models.count_params(pretrained.params) / 1024)
"""


def test_loading_needs_no_second_copy(tmp_path):
    big = LLAMA | {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 16, "vocab_size": 8192}
    tensors = random_tensors(big)
    write_model(tmp_path, big, tensors, shards=2)
    del tensors
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, size = map(float, run.stdout.split())
    shutil.rmtree(tmp_path)
    assert size > 100_000
    assert peak < 1.3 * size
