import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax.checks import InputError
from selecttkd_jax.training import OptimizerConfig, learning_rate_schedule, make_optimizer

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def rates(steps, **options):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **options), steps)
    return [float(schedule(step)) for step in range(steps)]


def test_the_first_step_of_the_warm_up_already_learns_and_the_peak_is_reached():
    assert rates(10, warmup_fraction=0.4, schedule="constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


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
            "query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((4, 2))},
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


def test_clipping_bounds_the_gradient_before_adam_sees_it():
    config = OptimizerConfig(clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.zeros((2,))}
    _, state = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    mean = optax.tree.get(state, "mu")["kernel"]
    np.testing.assert_allclose(mean, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"warmup_fraction": 1.5},
        {"b2": 1.0},
        {"weight_decay": -1.0},
        {"clip_norm": -1.0},
        {"final_fraction": -0.1},
    ],
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(InputError, match=f"optimizer.{next(iter(options))}"):
        OptimizerConfig(**options)
