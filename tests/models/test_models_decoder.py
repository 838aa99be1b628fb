"""The decoder against itself: cache, remat, packing, dtypes, depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LLAMA, QWEN2, QWEN3

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

BATCH, LENGTH = 2, 11


def example(hf_config=QWEN2, **changes):
    """A config, parameters without a constant among them, and a batch without padding."""
    config = models.decoder_config(hf_config | changes)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    ids = rng.integers(0, config.vocab_size, (BATCH, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    return config, jax.tree.map(jnp.asarray, params), ids, positions, np.ones_like(ids)


# Compiled once and shared: called plainly, each operation would be compiled by itself.
forward = jax.jit(models.forward, static_argnames=("config", "dtype", "remat"))


@pytest.mark.parametrize("hf_config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_cached_decoding_equals_one_uncached_pass(hf_config):
    config, params, ids, positions, _ = example(hf_config)
    expected, none = forward(config, params, ids, positions, np.ones_like(ids))
    assert none is None
    # The second prompt is shorter by two, padded on the right, and its text goes on where it ends.
    prompt, shorter = 6, np.array([0, 2])
    padded = ids.copy()
    padded[1, 4:] = 1
    cache = models.init_cache(config, BATCH, LENGTH + 4)
    hidden, cache = forward(config, params, padded[:, :prompt], positions[:, :prompt], np.ones((2, prompt), int), cache)
    np.testing.assert_allclose(hidden[0], expected[0, :prompt], atol=1e-5)
    np.testing.assert_allclose(hidden[1, :4], expected[1, :4], atol=1e-5)
    rows = np.arange(BATCH)
    for t in range(prompt, LENGTH):
        at = (t - shorter).astype(np.int32)
        hidden, cache = forward(config, params, ids[rows, at][:, None], at[:, None], np.ones((2, 1), int), cache)
        np.testing.assert_allclose(hidden[:, 0], np.array(expected)[rows, at], atol=1e-5)


def test_a_token_sees_neither_later_tokens_nor_other_segments():
    config, params, ids, positions, segments = example()
    segments[:, 6:] = 2
    hidden, _ = forward(config, params, ids, positions, segments)
    others = ids.copy()
    others[:, [4, 8]] = (ids[:, [4, 8]] + 1) % config.vocab_size
    changed, _ = forward(config, params, others, positions, segments)
    same = np.isclose(hidden, changed, atol=1e-6).all(axis=(0, 2))
    np.testing.assert_array_equal(same, [t not in (4, 5, 8, 9, 10) for t in range(LENGTH)])


def test_remat_changes_neither_values_nor_gradients_and_saves_memory():
    config, params, ids, positions, segments = example(QWEN3)

    def loss(params, remat):
        hidden, _ = models.forward(config, params, ids, positions, segments, remat=remat)
        return jnp.sum(jnp.sin(models.head_logits(config, params, hidden)))

    programs = [
        jax.jit(jax.value_and_grad(lambda params, remat=remat: loss(params, remat))).lower(params).compile()
        for remat in ("none", "kept", "full")
    ]
    plain, *others = (program(params) for program in programs)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), plain, other)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(plain[1]))
    everything, kept, nothing = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert nothing < 0.95 * kept and kept < 0.95 * everything


def test_a_way_to_rematerialize_that_is_unknown_is_refused():
    config, params, ids, positions, segments = example(QWEN3)
    with pytest.raises(InputError, match="remat must be one of none, kept, full, offload"):
        models.forward(config, params, ids, positions, segments, remat="on")


def test_gradient_equals_finite_differences():
    config, params, ids, positions, segments = example(LLAMA, num_hidden_layers=2)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)

    def loss(scale):
        moved = jax.tree.map(lambda leaf, step: leaf + scale * step, params, direction)
        hidden, _ = models.forward(config, moved, ids, positions, segments)
        return jnp.sum(jnp.sin(hidden))

    # The step is chosen for float32: its square and the rounding over it are of one size.
    step = jnp.float32(1e-3)
    value, slope = jax.jit(loss), jax.jit(jax.grad(loss))(jnp.float32(0.0))
    measured = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=2e-2)


def test_compute_dtype_leaves_parameters_and_float32_logits():
    config, params, ids, positions, segments = example()
    hidden, _ = forward(config, params, ids, positions, segments, dtype=jnp.bfloat16)
    assert hidden.dtype == jnp.bfloat16
    logits = models.head_logits(config, params, hidden)
    exact, _ = forward(config, params, ids, positions, segments)
    assert logits.dtype == jnp.float32
    error = jnp.abs(hidden.astype(jnp.float32) - exact).mean() / jnp.abs(exact).mean()
    assert 0 < error < 0.05
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert forward(config, low, ids, positions, segments)[0].dtype == jnp.bfloat16


def test_fully_padded_row_is_finite_with_finite_gradients():
    config, params, ids, positions, segments = example(LLAMA)
    segments[1] = 0
    loss = lambda params: jnp.sum(models.forward(config, params, ids, positions, segments)[0][0] ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_program_does_not_grow_with_depth():
    def program_size(num_layers):
        config = models.decoder_config(QWEN2 | {"num_hidden_layers": num_layers})
        params = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
        ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
        loss = lambda params, *batch: jnp.sum(models.forward(config, params, *batch)[0])  # noqa: E731
        return len(jax.jit(jax.grad(loss)).lower(params, ids, ids, ids).as_text())

    assert program_size(24) < 1.02 * program_size(3)


def test_initial_parameters():
    config = models.decoder_config(QWEN2)
    params = models.init_params(config, jax.random.key(0))
    kernel = np.array(params["layers"]["mlp"]["gate"]["kernel"])
    assert kernel.shape == (3, 24, 37)
    assert abs(kernel.std() / config.init_scale - 1) < 0.05
    assert not np.allclose(kernel[0], kernel[1])
    assert (params["layers"]["attention"]["q"]["bias"] == 0).all()
    assert (params["final_norm"]["scale"] == 1).all()
    low = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0), jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(low))


def test_count_of_parameters_counts_a_tied_head_once():
    tied, untied = (models.decoder_config(LLAMA | {"tie_word_embeddings": tied}) for tied in (True, False))
    assert models.count_params(untied) - models.count_params(tied) == 53 * 24
    assert models.count_params(example(LLAMA)[1]) == models.count_params(tied)
    # By hand: embedding, final norm, and per layer two norms, q and o, k and v, and the MLP.
    assert models.count_params(tied) == 53 * 24 + 24 + 3 * (2 * 24 + 2 * 24 * 60 + 2 * 24 * 20 + 3 * 24 * 37)
