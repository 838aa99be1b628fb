"""The step takes a loss that knows nothing of language models."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax.training import Frozen, init_state, make_train_step


class SquareSums(NamedTuple):
    loss: jax.Array
    count: jax.Array

    def means(self):
        return {"loss": float(self.loss) / float(self.count), "tokens": float(self.count)}


@dataclass(frozen=True)
class NoisyLine:
    """Squared error of a line, with noise drawn for the whole batch, that counts more from step to step."""

    noise: float

    def draw(self, key, batch):
        return {"noise": self.noise * jax.random.normal(key, batch["x"].shape)}

    def __call__(self, params, frozen, batch, draws, step):
        error = params["slope"] * batch["x"] + frozen.base["offset"] + draws["noise"] - batch["y"]
        return SquareSums(loss=(1.0 + step.astype(jnp.float32)) * jnp.sum(error**2), count=jnp.float32(error.size))


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_a_step_is_the_gradient_of_the_mean_however_the_batch_is_cut(micro_batches):
    x = np.arange(8, dtype=np.float32)
    batch = {"x": x, "y": 3 * x + 1}
    frozen = Frozen(base={"offset": jnp.float32(1.0)})
    step = make_train_step(NoisyLine(0.1), optax.sgd(0.001), micro_batches=micro_batches)
    state = init_state({"slope": jnp.float32(2.0)}, optax.sgd(0.001), seed=5)
    slope = 2.0
    for number in range(3):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), number)
        error = slope * x + 1.0 + 0.1 * np.asarray(jax.random.normal(key, (8,))) - batch["y"]
        slope -= 0.001 * (1 + number) * np.mean(2 * error * x)
        state, metrics = step(state, frozen, batch)
        assert float(state.params["slope"]) == pytest.approx(slope, rel=1e-5)
        assert metrics["sums"].means()["loss"] == pytest.approx((1 + number) * np.mean(error**2), rel=1e-5)
