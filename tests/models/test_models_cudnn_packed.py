"""cuDNN's attention over packed rows, told by its contract on a CPU: the plain products' values and gradients.

The stand-in looks at what the kernel is told and at nothing else. A slot that no text claims stays unwritten: NaN.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import NamedSharding, PartitionSpec
from models.packed_texts import HEAD_DIM, LENGTH, TEXTS, loss_and_gradient, make_arrays, make_rows, plain

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax._packed_rows import most_texts
from selecttkd_jax.models import _cudnn
from selecttkd_jax.models._attention import CUDNN_PACKED, find_served
from selecttkd_jax.sharding import MeshConfig, make_mesh

MANY = [(3,) * 40, (15,) * 16]  # more texts than there is room for, and as many


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Puts the stand-in in the kernel's place."""

    def mix(queries, keys, values, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
        assert mask_type.name == "PADDING_CAUSAL"
        places = jnp.arange(queries.shape[1])
        # [B, T, M]: how far into which text a slot is; nowhere in those that are not there.
        into = [places[None, :, None] - starts[:, None, :-1] for starts in (q_offsets, kv_offsets)]
        lengths = (q_seqlen, kv_seqlen)
        inside = [(deep >= 0) & (deep < many[:, None, :]) for deep, many in zip(into, lengths, strict=True)]
        seen = inside[0][:, :, None] & inside[1][:, None] & (into[0][:, :, None] >= into[1][:, None])
        mask = jnp.any(seen, axis=-1)[:, None]
        keys, values = (jnp.repeat(array, queries.shape[2] // array.shape[2], axis=2) for array in (keys, values))
        scores = jnp.where(mask, scale * jnp.einsum("BTHE,BSHE->BHTS", queries, keys), -jnp.inf)
        return jnp.einsum("BHTS,BSHE->BTHE", jax.nn.softmax(scores), values)

    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", mix)


def attend(segments):
    return lambda *arrays: _cudnn.attend_to_texts(*arrays, _cudnn.find_texts(jnp.asarray(segments)))


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=2)], ids=["alone", "mesh"])
def test_values_and_gradients_are_those_of_the_plain_products(mesh):
    arrays, (positions, segments) = make_arrays(), make_rows()
    expected = loss_and_gradient(lambda *arrays: plain(*arrays, positions, segments), arrays, segments)
    if mesh is None:
        found = loss_and_gradient(attend(segments), arrays, segments)
    else:
        made = make_mesh(mesh, jax.devices()[:4])
        with jax.set_mesh(made):
            placed = jax.device_put(arrays, NamedSharding(made, PartitionSpec("data", None, "tensor")))
            found = loss_and_gradient(attend(segments), placed, segments)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours) / scale, np.asarray(theirs) / scale, atol=1e-5)


def test_the_kernel_is_told_where_every_text_is_in_memory(monkeypatch):
    """By JAX's own way from its arguments to cuDNN's: in elements, rows one behind the other, nothing in between."""
    told = {}

    def keep(queries, keys, values, **options):
        told.update(options, query=queries, key=keys)
        return queries

    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", keep)
    _, segments = make_rows(TEXTS + MANY[1:])

    @jax.jit
    def operands(*arrays):
        attend(segments)(*arrays)
        names = ("q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "query", "key")
        return fused_attention_stablehlo._fix_seqlen_offsets(*map(told.get, names))

    lengths, key_lengths, starts, key_starts = operands(*make_arrays(len(TEXTS) + 1))
    expected, row = [], 0
    for row, texts in enumerate(TEXTS + MANY[1:]):
        start = row * LENGTH
        for count in (*texts, LENGTH - sum(texts)):
            expected += [(start, count)] * (count > 0)
            start += count
    assert start == (row + 1) * LENGTH
    for name, found in (("query", (starts, lengths)), ("key", (key_starts, key_lengths))):
        heads = told[name].shape[2]
        found_starts, found_lengths = (np.asarray(array).ravel() for array in found)
        np.testing.assert_array_equal(
            found_starts[: len(expected)], [start * heads * HEAD_DIM for start, _ in expected]
        )
        np.testing.assert_array_equal(found_starts[len(expected) :], (row + 1) * LENGTH * heads * HEAD_DIM)
        np.testing.assert_array_equal(found_lengths[: len(expected)], [count for _, count in expected])
        assert not found_lengths[len(expected) :].any()


def test_a_decoder_computes_the_same_with_it():
    config = models.DecoderConfig(
        vocab_size=40, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
    )
    params = models.init_params(replace(config, init_scale=0.3), jax.random.key(0))
    positions, segments = make_rows()
    ids = np.random.default_rng(1).integers(0, 40, segments.shape)
    real = (segments != 0)[..., None]

    def loss(params, attention):
        hidden, _ = models.forward(config, params, ids, positions, segments, attention=attention, remat="full")
        return jnp.sum(jnp.where(real, jnp.sin(hidden), 0.0)), jnp.all(jnp.isfinite(hidden))

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    found, expected = (compiled(params, how) for how in (CUDNN_PACKED, "xla"))
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-5)
    assert found[0][1], "padding, too, is finite: what it says is multiplied by zeros"
    for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


def test_rows_that_the_kernel_would_read_otherwise_are_told_from_those_that_it_serves():
    positions, segments = make_rows(TEXTS + MANY)
    assert np.asarray(find_served(positions, segments, CUDNN_PACKED)).tolist() == [True] * len(TEXTS) + [False, True]
    assert most_texts(LENGTH) == 16
    backwards, behind = segments.copy(), segments.copy()
    backwards[0, :156] = 3 - backwards[0, :156]
    behind[1, :9] = 0
    for broken in (backwards, behind):
        assert not np.asarray(find_served(positions, broken, CUDNN_PACKED)).all()


@pytest.mark.parametrize(
    ("capability", "packed", "found"),
    [
        ("9.0", True, CUDNN_PACKED),
        ("10.0", True, CUDNN_PACKED),
        ("8.0", True, "xla"),
        (None, True, "xla"),
        ("8.0", False, "cudnn"),
        ("gfx942", False, "xla"),
    ],
)
def test_a_gpu_takes_it_where_it_serves(capability, packed, found):
    decoder = models.DecoderConfig(40, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64)
    options = {"packed": packed, "capability": capability}
    assert models.choose_attention("auto", "gpu", "bfloat16", decoder, **options)[0] == found
    if found == "xla":
        with pytest.raises(InputError, match=r'models.attention = "cudnn" cannot serve: .*; leave it out'):
            models.choose_attention("cudnn", "gpu", "bfloat16", decoder, **options)


def test_a_jax_without_it_is_told_from_one_that_has_it(monkeypatch):
    monkeypatch.undo()
    assert _cudnn.is_there()
    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", lambda query, key, value: query)
    assert not _cudnn.is_there()
    decoder = models.DecoderConfig(40, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64)
    chosen, why = models.choose_attention("auto", "gpu", "bfloat16", decoder, packed=True, capability="9.0")
    assert chosen == "xla" and "has no cuDNN attention for packed rows" in why
