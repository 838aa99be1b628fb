"""Attention kernels through their CPU stand-in: the values and gradients of the plain products, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.models import _attention, choose_attention

CONFIG = models.DecoderConfig(41, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, init_scale=0.3)
LENGTH = 12
COUNTS = (12, 7, 1, 0)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """`cudnn` computed by JAX's own products, as a CPU can."""
    kernel = jax.nn.dot_product_attention

    def without_cudnn(*arguments, implementation, **options):
        assert implementation == "cudnn"
        return kernel(*arguments, implementation="xla", **options)

    monkeypatch.setattr(_attention.jax.nn, "dot_product_attention", without_cudnn)


def rows(counts=COUNTS):
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (len(counts), LENGTH))
    positions = np.broadcast_to(np.arange(LENGTH), ids.shape)
    segments = (positions < np.array(counts)[:, None]).astype(np.int32)
    return jnp.asarray(ids), jnp.asarray(positions * segments), jnp.asarray(segments)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("remat", ["kept", "full"])
def test_values_and_gradients_are_those_of_the_plain_products(kv_heads, remat):
    config = replace(CONFIG, num_kv_heads=kv_heads)
    params = models.init_params(config, jax.random.key(0))
    ids, positions, segments = rows()

    def loss(params, attention):
        hidden, _ = models.forward(config, params, ids, positions, segments, remat=remat, attention=attention)
        hidden = jnp.where(segments[:, :, None] != 0, hidden, 0)
        return jnp.sum(jnp.sin(hidden)), hidden

    (_, expected), expected_gradient = jax.value_and_grad(loss, has_aux=True)(params, "xla")
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params, "cudnn")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Beside the whole array: an entry near zero is the rest of a sum whose terms round differently.
    near = jax.tree.map(lambda a, b: np.linalg.norm(a - b) <= 5e-6 * np.linalg.norm(b), gradient, expected_gradient)
    assert all(jax.tree.leaves(near)), near


@pytest.mark.parametrize("spoil", ["two texts", "a later start", "padding in front", "padding inside"])
def test_rows_that_the_kernel_would_get_wrong_come_out_as_nan(spoil):
    ids, positions, segments = (np.array(array) for array in rows((12, 12)))
    if spoil == "two texts":
        segments[1, 5:], positions[1, 5:] = 2, np.arange(LENGTH - 5)
    elif spoil == "a later start":
        positions[1] += 1
    elif spoil == "padding in front":
        segments[1, :3], positions[1] = 0, np.maximum(np.arange(LENGTH) - 3, 0)
    else:
        segments[1, 4] = 0
    params = models.init_params(CONFIG, jax.random.key(0))
    hidden, _ = models.forward(CONFIG, params, ids, positions, segments, attention="cudnn")
    assert np.all(np.isfinite(hidden[0])) and np.all(np.isnan(hidden[1]))


@pytest.mark.parametrize(
    ("asked", "platform", "dtype", "change", "tensor", "expected"),
    [
        ("auto", "gpu", "bfloat16", {}, 1, "cudnn"),
        ("auto", "gpu", "float16", {}, 2, "cudnn"),
        ("cudnn", "gpu", "bfloat16", {}, 1, "cudnn"),
        ("xla", "gpu", "bfloat16", {}, 1, "xla"),
        ("auto", "cpu", "bfloat16", {}, 1, "xla"),
        ("auto", "gpu", "float32", {}, 1, "xla"),
        ("auto", "gpu", "bfloat16", {"head_dim": 12}, 1, "xla"),
        ("auto", "gpu", "bfloat16", {"head_dim": 256}, 1, "xla"),
        ("auto", "gpu", "bfloat16", {}, 4, "xla"),
    ],
)
def test_the_kernel_is_chosen_by_what_it_can_serve(asked, platform, dtype, change, tensor, expected):
    decoders = CONFIG, replace(CONFIG, **change)
    assert choose_attention(asked, platform, dtype, *decoders, tensor=tensor)[0] == expected
    if asked == "auto" and expected == "xla":
        with pytest.raises(InputError, match=r'models.attention = "cudnn" cannot serve: .*; leave it out'):
            choose_attention("cudnn", platform, dtype, *decoders, tensor=tensor)


def test_an_unknown_attention_is_refused():
    with pytest.raises(InputError, match="models.attention"):
        choose_attention("flash", "gpu", "bfloat16", CONFIG)
