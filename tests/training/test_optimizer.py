import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.training import OptimizerConfig, learning_rate_schedule, make_optimizer

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def rates(steps, **options):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **options), steps)
    return [float(schedule(step)) for step in range(steps)]


def test_the_first_step_of_the_warm_up_already_learns_and_the_peak_is_reached():
    assert rates(10, warmup_fraction=0.4, schedule="constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


def test_a_warm_up_of_so_many_steps_is_the_same_in_a_longer_run():
    assert rates(5, warmup_steps=2, schedule="constant") == pytest.approx([0.5, 1, 1, 1, 1])
    assert rates(9, warmup_steps=2, schedule="constant")[:5] == rates(5, warmup_steps=2, schedule="constant")


def test_cosine_falls_from_the_peak_to_the_final_fraction():
    values = rates(9, warmup_fraction=1 / 9, final_fraction=0.1)
    expected = [1.0, *(0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * s / 8)) for s in range(8))]
    assert values == pytest.approx(expected, abs=1e-6)


def test_linear_without_warm_up():
    assert rates(4, warmup_fraction=0.0, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_only_matrices_decay():
    params = {
        "embedding": jnp.ones((3, 2)),
        "final_norm": {"scale": jnp.ones((2,))},
        "layers": {
            "attention_norm": {"scale": jnp.ones((4, 2))},
            "query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((4, 2)), "magnitude": jnp.ones((4, 2))},
        },
    }
    config = OptimizerConfig(learning_rate=0.1, warmup_fraction=0, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    zeros = optax.tree.zeros_like(params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert float(updates["embedding"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["layers"]["query"]["kernel"][0, 0, 0]) == pytest.approx(-0.05)
    assert float(jnp.abs(updates["final_norm"]["scale"]).max()) == 0
    assert float(jnp.abs(updates["layers"]["attention_norm"]["scale"]).max()) == 0
    assert float(jnp.abs(updates["layers"]["query"]["bias"]).max()) == 0
    assert float(jnp.abs(updates["layers"]["query"]["magnitude"]).max()) == 0


def test_clipping_bounds_the_gradient_before_adam_sees_it():
    config = OptimizerConfig(clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.zeros((2,))}
    _, state = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    mean = optax.tree.get(state, "mu")["kernel"]
    np.testing.assert_allclose(mean, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def test_a_shorter_first_moment_takes_nearly_the_same_steps():
    """bfloat16 keeps eight bits of the mean gradient; the mean of the squares and the weights stay float32."""
    rng = np.random.default_rng(0)
    gradients = [jnp.asarray(rng.normal(0.3, 1.0, 64), jnp.float32) for _ in range(20)]

    def run(moment_dtype):
        config = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.0, schedule="constant", moment_dtype=moment_dtype)
        optimizer = make_optimizer(config, 20)
        params = {"kernel": jnp.zeros(64)}
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update({"kernel": gradient}, state, params)
            params = optax.apply_updates(params, updates)
        return params["kernel"], optax.tree.get(state, "mu")["kernel"], optax.tree.get(state, "nu")["kernel"]

    (exact, long_mean, _), (close, short_mean, squares) = run("float32"), run("bfloat16")
    assert long_mean.dtype == squares.dtype == close.dtype == jnp.float32 and short_mean.dtype == jnp.bfloat16
    error = np.abs(close - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"warmup_fraction": 1.5},
        {"warmup_steps": -1},
        {"b2": 1.0},
        {"weight_decay": -1.0},
        {"clip_norm": -1.0},
        {"final_fraction": -0.1},
        {"moment_dtype": "float16"},
    ],
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(InputError, match=f"optimizer.{next(iter(options))}"):
        OptimizerConfig(**options)
