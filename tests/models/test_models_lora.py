"""Adapters against the model they adapt: zero branches, merging, gradients, dtypes, bad files."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LLAMA, QWEN3

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

LORA = models.LoraConfig(rank=3, alpha=7.0)
DORA = models.LoraConfig(rank=2, alpha=3.0, dora=True, targets=("k_proj", "o_proj", "up_proj"))


def example(adapters, hf_config=QWEN3):
    """A config, its parameters, fresh adapters, adapters in which no number is special, and a batch."""
    config = models.decoder_config(hf_config)
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

    params = jax.tree.map(draw, jax.eval_shape(lambda: models.init_params(config, jax.random.key(0))))
    up = params["layers"]["mlp"]["up"]
    up["kernel"] = up["kernel"].at[1, :, 2].set(0.0)  # a column without a length
    fresh = models.init_lora(adapters, config, params, jax.random.key(1))
    trained = jax.tree.map(lambda leaf: leaf * 0.9 + draw(leaf), fresh)
    ids = rng.integers(0, config.vocab_size, (2, 11)).astype(np.int32)
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), ids.shape)
    return config, params, fresh, trained, (ids, positions, np.ones_like(ids))


@partial(jax.jit, static_argnames=("config", "adapters", "dtype", "remat"))
def hidden_states(config, params, lora, batch, adapters=None, dtype=None, remat="kept"):
    if adapters is not None:
        params = models.attach_adapters(params, lora, adapters)
    return models.forward(config, params, *batch, dtype=dtype, remat=remat)[0]


def test_fresh_adapters_change_nothing_at_all():
    config, params, fresh, _, batch = example(LORA)
    base = hidden_states(config, params, None, batch)
    np.testing.assert_array_equal(hidden_states(config, params, fresh, batch, LORA), base)
    assert sorted(fresh["attention"]) == ["k", "o", "q", "v"] and sorted(fresh["mlp"]) == ["down", "gate", "up"]


def test_fresh_dora_changes_nothing_but_rounding():
    config, params, fresh, _, batch = example(DORA)
    base = hidden_states(config, params, None, batch)
    np.testing.assert_allclose(hidden_states(config, params, fresh, batch, DORA), base, atol=1e-5)
    assert sorted(fresh["attention"]) == ["k", "o"] and sorted(fresh["mlp"]) == ["up"]


@pytest.mark.parametrize("adapters", [LORA, DORA], ids=["lora", "dora"])
def test_the_merged_model_computes_what_the_adapted_one_does(adapters):
    config, params, _, trained, batch = example(adapters)
    through_branches = hidden_states(config, params, trained, batch, adapters)
    merged = models.merge_lora(params, trained, adapters)
    np.testing.assert_allclose(hidden_states(config, merged, None, batch), through_branches, atol=1e-4)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert jnp.abs(through_branches - hidden_states(config, params, None, batch)).max() > 0.1
    untouched = merged["layers"]["attention"]["q_norm"]["scale"], params["layers"]["attention"]["q_norm"]["scale"]
    assert untouched[0] is untouched[1]


def test_gradient_equals_finite_differences():
    config, params, _, trained, batch = example(LORA)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), trained)

    def loss(distance):
        moved = jax.tree.map(lambda leaf, step: leaf + distance * step, trained, direction)
        return jnp.sum(jnp.sin(hidden_states(config, params, moved, batch, LORA)))

    step = jnp.float32(1e-3)
    value, slope = jax.jit(loss), jax.jit(jax.grad(loss))(jnp.float32(0.0))
    np.testing.assert_allclose(slope, (value(step) - value(-step)) / (2 * step), rtol=2e-2)


def test_recomputing_the_layers_changes_no_gradient():
    config, params, _, trained, batch = example(DORA)

    def gradient(remat):
        loss = lambda lora: jnp.sum(jnp.sin(hidden_states(config, params, lora, batch, DORA, remat=remat)))  # noqa: E731
        return jax.jit(jax.grad(loss))(trained)

    kept, recomputed = gradient("kept"), gradient("full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), kept, recomputed)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(kept))


def test_no_gradient_of_a_frozen_kernel_is_computed():
    config, params, _, trained, batch = example(LORA)

    def loss(lora, params):
        return jnp.sum(hidden_states(config, params, lora, batch, LORA))

    def operations(argument):
        compiled = jax.jit(jax.grad(loss, argnums=argument)).lower(trained, params).compile()
        return compiled.cost_analysis()["flops"]

    # Of one layer, since the layers are a loop; the adapters' own gradients are the small rest.
    one_layer = [leaf[0] for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim > 2]
    kernel_gradients = 2 * batch[0].size * sum(leaf.size for leaf in one_layer)
    assert operations(0) < operations(1) - 0.7 * kernel_gradients


def test_frozen_weights_keep_their_dtype_and_adapters_theirs():
    config, params, _, trained, batch = example(LORA)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    def loss(lora, base, dtype):
        return jnp.sum(hidden_states(config, base, lora, batch, LORA, dtype=dtype).astype(jnp.float32) ** 2)

    gradient_of = jax.jit(jax.grad(loss), static_argnums=2)
    gradient = gradient_of(trained, low, jnp.dtype("bfloat16"))
    exact = gradient_of(trained, params, jnp.dtype("float32"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (gradient, exact)]
    assert np.dot(*flat) > 0.98 * np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])
    merged = models.merge_lora(low, trained, LORA)
    assert merged["layers"]["mlp"]["up"]["kernel"].dtype == jnp.float32 and merged["embedding"].dtype == jnp.bfloat16


def test_parameters_with_adapters_are_not_written_as_if_they_had_none(tmp_path):
    config, params, fresh, _, _ = example(LORA)
    adapted = models.Pretrained(config, models.attach_adapters(params, fresh, LORA), models.hf_config(config))
    with pytest.raises(InputError, match="merge them with merge_lora"):
        models.save_pretrained(tmp_path / "model", adapted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "lora.alpha must be above 0"),
        ({"targets": ()}, "lora.targets must name"),
        ({"targets": ("q_proj", "q_proj")}, "lora.targets must name each projection once"),
        ({"targets": ("q_porj",)}, "lora.targets must be one of .*did you mean 'q_proj'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        models.LoraConfig(**options)


def test_what_is_saved_reads_back_equal(tmp_path):
    config, _, _, trained, _ = example(DORA)
    models.save_adapter(tmp_path / "adapter", DORA, config, trained, "owner/base")
    models.save_adapter(tmp_path / "adapter", DORA, config, trained, "owner/base")  # replaces
    read, lora = models.load_adapter(tmp_path / "adapter", config)
    assert read == DORA
    jax.tree.map(np.testing.assert_array_equal, lora, trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rslora": True}, "use_rslora = True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": "all-linear"}, "target_modules must be a list of q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules must be a list"),
        ({"r": None}, "r must be a number, got None"),
        ({"r": 3}, r"shape \(4, 24\), but adapter_config.json asks for \(3, 24\)"),
        ({"target_modules": ["q_proj"]}, "a tensor that is not used"),
        ({"use_dora": True}, "has no tensor .*lora_magnitude_vector"),
    ],
)
def test_adapters_that_ask_for_more_are_refused(tmp_path, change, message):
    config, adapters = models.decoder_config(LLAMA), models.LoraConfig(rank=4)
    lora = models.init_lora(adapters, config, models.init_params(config, jax.random.key(0)), jax.random.key(1))
    models.save_adapter(tmp_path / "adapter", adapters, config, lora, "owner/base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        models.load_adapter(tmp_path / "adapter", config)
