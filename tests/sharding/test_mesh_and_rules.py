"""Meshes from configurations, and where rules put the parameters of a real decoder."""

from dataclasses import replace

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from selecttkd_jax import models, sharding
from selecttkd_jax._errors import InputError
from selecttkd_jax.sharding import PRESETS, MeshConfig, make_mesh, parameter_shardings

CONFIG = models.DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    mlp_size=24,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    qkv_bias=True,
    o_bias=True,
    qk_norm=True,
)


def shapes(config):
    return jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))


def specs(config, rules, **sizes):
    tree = parameter_shardings(make_mesh(MeshConfig(**sizes)), rules, models.logical_axes(config), shapes(config))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({"fsdp": -1}, (1, 8, 1)),
        ({"data": -1, "fsdp": 2}, (4, 2, 1)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 1, "fsdp": 4, "tensor": 2}, (1, 4, 2)),
    ],
)
def test_the_mesh_has_three_automatic_axes(sizes, shape):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_the_mesh_takes_the_devices_it_is_given(caplog):
    devices = jax.devices()[4:6]
    assert list(make_mesh(MeshConfig(fsdp=-1), devices).devices.flat) == devices
    with caplog.at_level("WARNING"):
        assert make_mesh(MeshConfig(), devices).size == 1
    assert "takes 1 of 2 devices" in caplog.text and "-1" in caplog.text


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_mesh(MeshConfig(data=4, fsdp=4)), "data 4 x fsdp 4 x tensor 1 needs 16 .* machine has 8"),
        (lambda: make_mesh(MeshConfig(fsdp=-1, tensor=3)), "fsdp = -1, tensor = 3: 8 devices are not a multiple of 3"),
        (lambda: make_mesh(MeshConfig(fsdp=-1, tensor=16)), "8 devices are not a multiple of 16"),
        (lambda: MeshConfig(fsdp=-1, data=-1), r"only one mesh axis can be -1; .*\(-1, -1, 1\)"),
        (lambda: MeshConfig(tensor=0), "mesh.tensor must be at least 1, or -1 .*; got 0"),
        (lambda: MeshConfig(student="fsdp+tensors"), r"mesh.student must be one of .*did you mean 'fsdp\+tensor'"),
        (lambda: MeshConfig(teacher="whole"), "mesh.teacher must be one of"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_letters_spell_every_parameter():
    letters, leaves = models.logical_axes(CONFIG), shapes(CONFIG)
    sizes = {"L": 3, "V": 40, "D": 16, "F": 24, "H": 8, "K": 4, "E": 6}
    spelled = jax.tree.map(lambda axes: tuple(sizes[axis] for axis in axes), letters)
    assert spelled == jax.tree.map(lambda leaf: leaf.shape, leaves)
    tied = replace(CONFIG, tied_head=True, qkv_bias=False, o_bias=False, qk_norm=False)
    assert jax.tree.structure(models.logical_axes(tied)) == jax.tree.structure(shapes(tied))


def test_fsdp_and_tensor():
    assert specs(CONFIG, PRESETS["fsdp+tensor"], fsdp=2, tensor=4) == {
        "embedding": ("tensor", "fsdp"),
        "head": ("fsdp", "tensor"),
        "final_norm.scale": (None,),
        "layers.attention_norm.scale": (None, None),
        "layers.mlp_norm.scale": (None, None),
        "layers.attention.q.kernel": (None, "fsdp", "tensor", None),
        "layers.attention.k.kernel": (None, "fsdp", "tensor", None),
        "layers.attention.v.kernel": (None, "fsdp", "tensor", None),
        "layers.attention.o.kernel": (None, "tensor", None, "fsdp"),
        "layers.attention.q.bias": (None, "tensor", None),
        "layers.attention.k.bias": (None, "tensor", None),
        "layers.attention.v.bias": (None, "tensor", None),
        "layers.attention.o.bias": (None, None),
        "layers.attention.q_norm.scale": (None, None),
        "layers.attention.k_norm.scale": (None, None),
        "layers.mlp.gate.kernel": (None, "fsdp", "tensor"),
        "layers.mlp.up.kernel": (None, "fsdp", "tensor"),
        "layers.mlp.down.kernel": (None, "tensor", "fsdp"),
    }


def test_the_other_presets_are_its_halves():
    both = specs(CONFIG, PRESETS["fsdp+tensor"], fsdp=2, tensor=4)

    def only(axis):
        return {name: tuple(place if place == axis else None for place in spec) for name, spec in both.items()}

    assert specs(CONFIG, PRESETS["fsdp"], fsdp=2, tensor=4) == only("fsdp")
    assert specs(CONFIG, PRESETS["tensor"], fsdp=2, tensor=4) == only("tensor")
    assert specs(CONFIG, PRESETS["replicated"], fsdp=2, tensor=4) == only("nothing")


def test_key_heads_and_vocabulary_that_do_not_divide_are_replicated_which_is_logged(caplog):
    with caplog.at_level("INFO"):
        found = specs(CONFIG, PRESETS["tensor"], tensor=8)
    assert found["layers.attention.k.kernel"] == found["layers.attention.v.kernel"] == (None, None, None, None)
    assert found["layers.attention.k.bias"] == (None, None, None)
    assert found["layers.attention.q.kernel"] == (None, None, "tensor", None)
    assert found["embedding"] == ("tensor", None)
    assert len(caplog.messages) == 1 and "K = 4 does not divide over tensor = 8" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        found = specs(replace(CONFIG, vocab_size=41), PRESETS["fsdp+tensor"], fsdp=2, tensor=4)
    assert found["embedding"] == (None, "fsdp") and found["head"] == ("fsdp", None)
    assert len(caplog.messages) == 1 and "V = 41 does not divide over tensor = 4" in caplog.text


@pytest.mark.parametrize(
    "config, rules, message",
    [
        (replace(CONFIG, hidden_size=12), "fsdp", r"embedding \(40, 12\): D = 12 does not divide over fsdp = 8"),
        (replace(CONFIG, mlp_size=22), "tensor", r"layers.mlp.down.kernel .*F = 22 does not divide over tensor = 8"),
        (replace(CONFIG, num_heads=4), "tensor", r"layers.attention.o.kernel .*H = 4 does not divide over tensor = 8"),
        (
            CONFIG,
            {"D": "fsdp", "F": "fsdp"},
            r"layers.mlp.down.kernel LFD \(3, 24, 16\): F and D would both .* axis fsdp \(8 devices\)",
        ),
        (CONFIG, {"D": "model"}, "rule D -> model: the mesh has no axis model"),
    ],
)
def test_rules_refuse(config, rules, message):
    sizes = {"tensor": 8} if rules == "tensor" else {"fsdp": 8}
    with pytest.raises(InputError, match=message):
        specs(config, PRESETS[rules] if isinstance(rules, str) else rules, **sizes)


def test_letters_of_another_rank_are_refused():
    mesh = make_mesh(MeshConfig(fsdp=8))
    with pytest.raises(InputError, match=r"head has axes DV, but shape \(8,\)"):
        parameter_shardings(mesh, sharding.PRESETS["fsdp"], {"head": "DV"}, {"head": jax.ShapeDtypeStruct((8,), "f4")})
    spec = parameter_shardings(mesh, {}, {"head": "D"}, {"head": jax.ShapeDtypeStruct((8,), "f4")})["head"].spec
    assert spec == PartitionSpec(None)


def test_xla_flags_become_options_of_the_compiler():
    config = sharding.MeshConfig(xla_flags=("--xla_one=true", "xla_two=false", "xla_three=5=6"))
    assert config.compiler_options == {"xla_one": True, "xla_two": False, "xla_three": "5=6"}


@pytest.mark.parametrize("flag", ["xla_one", "one=true", "xla_one=", "xla_one=true xla_two=true"])
def test_what_is_no_xla_flag_is_refused(flag):
    with pytest.raises(InputError, match=r"mesh\.xla_flags takes options such as xla_name=value"):
        sharding.MeshConfig(xla_flags=(flag,))
