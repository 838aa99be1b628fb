"""Loading onto a mesh: what is read of each file, where it is placed, and the way back to disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import QWEN2, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax.models.files._shards import Stored
from selecttkd_jax.sharding import PRESETS, MeshConfig, make_mesh

# Sizes that divide, and biases; E, the inner one of two axes flattened together on disk, too.
DIVISIBLE = QWEN2 | {"vocab_size": 56, "intermediate_size": 40, "num_attention_heads": 8, "num_key_value_heads": 4}
RULES = {**PRESETS, "inner axis": {"E": "tensor", "D": "fsdp"}, "vocabulary over two": {"V": "fsdp", "D": "tensor"}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), DIVISIBLE, random_tensors(DIVISIBLE), shards=2)


@pytest.fixture(scope="module")
def whole(directory):
    return models.from_pretrained(directory)


def shardings_of(rules, **sizes):
    mesh = make_mesh(MeshConfig(**sizes))

    return lambda config: models.shardings(config, mesh, RULES[rules])


def named_leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("rules", RULES)
def test_every_shard_holds_its_part_of_the_file(directory, whole, rules):
    of = shardings_of(rules, data=2, fsdp=2, tensor=2)
    loaded = models.from_pretrained(directory, shardings=of)
    assert loaded.config == whole.config
    assert jax.tree.structure(loaded.params) == jax.tree.structure(whole.params)
    expected, wanted = named_leaves(whole.params), named_leaves(of(whole.config))
    for name, leaf in named_leaves(loaded.params).items():
        assert leaf.sharding == wanted[name], name
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(expected[name])[shard.index], err_msg=name)


def test_a_tree_of_shardings_and_a_dtype(directory, whole):
    tree = shardings_of("fsdp", fsdp=8)(whole.config)
    loaded = models.from_pretrained(directory, jnp.bfloat16, tree)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)


@pytest.mark.parametrize(
    "rules, sizes", [("fsdp+tensor", {"fsdp": 4, "tensor": 2}), ("tensor", {"data": 2, "tensor": 4})]
)
def test_each_slice_is_read_once(directory, whole, monkeypatch, rules, sizes):
    """Replicas share what was read, and a slice of a tensor costs no more than its own bytes."""
    read = []
    real = Stored.read

    def counting(stored, part):
        tensor = real(stored, part)
        read.append((stored.name, tensor.size))
        return tensor

    monkeypatch.setattr(Stored, "read", counting)
    loaded = models.from_pretrained(directory, shardings=shardings_of(rules, **sizes))
    assert sum(size for _, size in read) == models.count_params(whole.params)
    gate = loaded.params["layers"]["mlp"]["gate"]["kernel"]
    parts = [size for name, size in read if name == "model.layers.1.mlp.gate_proj.weight"]
    assert set(parts) == {24 * 40 // len(parts)} and len(parts) == len({str(s.index) for s in gate.addressable_shards})


def test_export_gathers_what_was_sharded(directory, tmp_path):
    loaded = models.from_pretrained(directory, shardings=shardings_of("fsdp+tensor", fsdp=4, tensor=2))
    models.save_pretrained(tmp_path / "copy", loaded)
    written = load_file(tmp_path / "copy" / "model.safetensors")
    expected = random_tensors(DIVISIBLE)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written[name], tensor)
