"""Int8 weights against numpy: rounding, columns, size, and the model they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LLAMA, QWEN2

from selecttkd_jax import models
from selecttkd_jax._errors import InputError


def example(hf_config):
    config = models.decoder_config(hf_config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    ids = rng.integers(0, config.vocab_size, (2, 11)).astype(np.int32)
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), ids.shape)
    return config, params, (ids, positions, np.ones_like(ids))


forward = jax.jit(models.forward, static_argnames=("config", "dtype"))


@pytest.mark.parametrize(
    ("part", "name", "inputs"), [("attention", "q", (1,)), ("attention", "o", (1, 2)), ("mlp", "down", (1,))]
)
def test_each_column_is_rounded_to_steps_of_its_own(part, name, inputs):
    _, params, _ = example(LLAMA)
    kernel = np.array(params["layers"][part][name]["kernel"])
    kernel[1, ..., 2] = 0  # a column of zeros has no largest weight
    params["layers"][part][name]["kernel"] = jnp.asarray(kernel)
    stored = models.quantize_int8(params)["layers"][part][name]["kernel"]
    largest = np.abs(kernel).max(axis=inputs, keepdims=True)
    assert stored["int8"].dtype == jnp.int8 and stored["int8"].shape == kernel.shape
    np.testing.assert_allclose(stored["scale"], largest / 127, rtol=1e-6)
    restored = np.array(stored["int8"], np.float64) * np.array(stored["scale"], np.float64)
    assert (np.abs(restored - kernel) <= 0.501 * largest / 127).all()
    # Every column uses the whole range, up to its largest weight.
    reached = np.abs(np.array(stored["int8"], int)).max(axis=inputs)
    assert set(np.unique(reached)) == {0, 127} and (reached == 0).sum() == (largest == 0).sum()


def test_the_model_is_the_one_of_the_rounded_weights():
    config, params, batch = example(QWEN2)
    stored = models.quantize_int8(params)

    def restored(leaf):
        return leaf["int8"].astype(jnp.float32) * leaf["scale"] if isinstance(leaf, dict) else leaf

    is_kernel = lambda leaf: isinstance(leaf, dict) and "int8" in leaf  # noqa: E731
    rounded = jax.tree.map(restored, stored, is_leaf=is_kernel)
    assert jax.tree.structure(rounded) == jax.tree.structure(params)
    hidden, _ = forward(config, stored, *batch)
    np.testing.assert_allclose(hidden, forward(config, rounded, *batch)[0], atol=1e-5)
    exact = forward(config, params, *batch)[0]
    error = float(jnp.abs(hidden - exact).mean() / jnp.abs(exact).mean())
    assert 1e-3 < error < 0.03
    assert forward(config, stored, *batch, dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_only_kernels_of_the_layers_change_and_the_rest_is_shared():
    _, params, _ = example(QWEN2)
    stored = models.quantize_int8(params)
    assert stored["embedding"] is params["embedding"] and stored["head"] is params["head"]
    assert stored["layers"]["attention"]["q"]["bias"] is params["layers"]["attention"]["q"]["bias"]
    shorter = [leaf for leaf in jax.tree.leaves(stored) if leaf.dtype == jnp.int8]
    assert len(shorter) == 7


def test_memory_stays_int8_while_the_model_runs():
    """A deep model's program needs room for one layer in the compute dtype, not for all of them."""
    config = models.decoder_config(LLAMA | {"num_hidden_layers": 40})
    params = jax.eval_shape(lambda: models.quantize_int8(models.init_params(config, jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    compiled = jax.jit(lambda params, *batch: models.forward(config, params, *batch)[0]).lower(params, ids, ids, ids)
    layers_in_float32 = 4 * sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.dtype == jnp.int8)
    assert compiled.compile().memory_analysis().temp_size_in_bytes < layers_in_float32 / 8


def test_int8_weights_are_not_written_as_a_model(tmp_path):
    config, params, _ = example(LLAMA)
    stored = models.Pretrained(config, models.quantize_int8(params), models.hf_config(config))
    with pytest.raises(InputError, match="int8"):
        models.save_pretrained(tmp_path / "model", stored)
