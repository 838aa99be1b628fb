"""The TPU's attention kernel, its steps interpreted on a CPU: the plain products' values and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from models.packed_texts import LENGTH, loss_and_gradient, make_arrays, make_rows, plain

from selecttkd_jax import models
from selecttkd_jax.models import _splash
from selecttkd_jax.models._attention import find_served
from selecttkd_jax.sharding import MeshConfig, make_mesh


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(_splash, "INTERPRETED", True)
    monkeypatch.setattr(_splash, "_BLOCKS", (128,))  # two of them in each row


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def arrays():
    return make_arrays()


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=2)], ids=["alone", "mesh"])
def test_values_and_gradients_are_those_of_the_plain_products(arrays, rows, mesh):
    positions, segments = rows
    expected = loss_and_gradient(lambda *arrays: plain(*arrays, positions, segments), arrays, segments)
    if mesh is None:
        found = loss_and_gradient(lambda *a: _splash.attend_in_segments(*a, segments), arrays, segments)
    else:
        made = make_mesh(mesh, jax.devices()[:4])
        with jax.set_mesh(made):
            placed = jax.device_put(arrays, NamedSharding(made, PartitionSpec("data", None, "tensor")))
            found = loss_and_gradient(
                lambda *a: _splash.attend_in_segments(*a, jnp.asarray(segments)), placed, segments
            )
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours) / scale, np.asarray(theirs) / scale, atol=1e-5)


def test_a_decoder_computes_the_same_with_it(rows):
    config = models.DecoderConfig(
        vocab_size=40, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
    )
    params = models.init_params(replace(config, init_scale=0.3), jax.random.key(0))
    positions, segments = rows
    ids = np.random.default_rng(1).integers(0, 40, segments.shape)
    real = (segments != 0)[..., None]

    def loss(params, attention):
        hidden, _ = models.forward(config, params, ids, positions, segments, attention=attention, remat="full")
        return jnp.sum(jnp.where(real, jnp.sin(hidden), 0.0))

    found, expected = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, how) for how in ("splash", "xla"))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


def test_rows_that_the_kernel_would_read_otherwise_are_told_from_those_that_it_serves(rows):
    positions, segments = (values.copy() for values in rows)
    assert np.asarray(find_served(positions, segments, "splash")).all()
    broken = []
    for change in ("gap", "left", "twice", "backwards", "middle"):
        places, numbers = np.arange(LENGTH), np.ones(LENGTH, np.int32)
        if change == "gap":
            places[50:] += 1
        elif change == "left":
            numbers[:50] = 0
        elif change == "twice":
            numbers[100:200] = 2
            places[100:200] -= 100
        elif change == "backwards":
            numbers[:100] = 2
            places[100:] -= 100
        else:
            places += 3
        broken.append((places, numbers))
    places, numbers = (np.stack(values) for values in zip(*broken, strict=True))
    assert not np.asarray(find_served(places, numbers, "splash")).any()


@pytest.mark.parametrize(
    ("asked", "dtype", "options", "found"),
    [
        ("auto", "bfloat16", {"length": 1024}, "splash"),
        ("auto", "bfloat16", {"length": 1024, "packed": True}, "splash"),
        ("splash", "bfloat16", {"length": 128, "tensor": 2}, "splash"),
        ("auto", "float32", {"length": 1024}, "xla"),
        ("auto", "bfloat16", {"length": 1000}, "xla"),
        ("auto", "bfloat16", {}, "xla"),
        ("auto", "bfloat16", {"length": 1024, "tensor": 4}, "xla"),
    ],
)
def test_a_tpu_takes_it_where_it_serves(asked, dtype, options, found):
    decoder = models.DecoderConfig(
        vocab_size=40, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64
    )
    assert models.choose_attention(asked, "tpu", dtype, decoder, **options)[0] == found
