"""A step whose loss or gradient is not finite changes nothing but the counts of data, draws and schedule."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax.training import Frozen, OptimizerConfig, init_state, make_optimizer, make_train_step
from selecttkd_jax.training import _step as step_file

pytestmark = pytest.mark.usefixtures("lenient_promotion")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    loss: jax.Array
    count: jax.Array


@dataclass(frozen=True)
class Square:
    """The mean of (w x)^2 / 2 over the rows; the gradient of its root has no limit at 0."""

    rooted: bool = False

    def draw(self, key, batch):
        return None

    def __call__(self, params, frozen, batch, draws, step):
        value = (params["w"][None, :] * batch) ** 2
        loss = jnp.sum(jnp.sqrt(value) if self.rooted else value / 2)
        return Sums(loss, jnp.float32(batch.size))


def steps_of(values, *, rooted=False):
    """The state after each batch of one value, and whether the step was applied; Adam with a falling rate."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_fraction=0.0, schedule="linear"), 10)
    step = make_train_step(Square(rooted), optimizer)
    state, found = init_state({"w": jnp.ones(3)}, optimizer, 0), []
    for value in values:
        state, metrics = step(state, Frozen(), np.full((2, 3), value, np.float32))
        found.append((jax.tree.map(np.asarray, (state.params, state.opt_state)), bool(metrics["applied"])))
    return found, int(state.step)


def parts(opt_state):
    """Adam's count, both moments, and the schedule's count."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_named)
    (adam,) = [node for node in nodes if isinstance(node, optax.ScaleByAdamState)]
    (rate,) = [node for node in nodes if isinstance(node, optax.ScaleByScheduleState)]
    return int(adam.count), adam.mu["w"], adam.nu["w"], int(rate.count)


def _is_named(node):
    return isinstance(node, optax.ScaleByAdamState | optax.ScaleByScheduleState)


@pytest.mark.parametrize("by_values", [False, True])
@pytest.mark.parametrize("bad, rooted", [(np.nan, False), (np.inf, False), (0.0, True)])
def test_a_step_that_is_not_finite_is_passed_over(bad, rooted, by_values, monkeypatch):
    if by_values:  # as on an accelerator
        monkeypatch.setattr(step_file.jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    found, steps = steps_of([1.0, 2.0, bad, 3.0], rooted=rooted)
    assert [applied for _, applied in found] == [True, True, False, True] and steps == 4
    (before, old), (after, new) = found[1][0], found[2][0]
    np.testing.assert_array_equal(after["w"], before["w"])
    count, mu, nu, rate = parts(old)
    again = parts(new)
    assert again[0] == count == 2 and (rate, again[3]) == (2, 3)
    np.testing.assert_array_equal(again[1], mu)
    np.testing.assert_array_equal(again[2], nu)
    # The next one learns, at the rate of the step that it is.
    assert np.all(np.isfinite(found[3][0][0]["w"])) and np.all(found[3][0][0]["w"] < before["w"])
    assert parts(found[3][0][1])[::3] == (3, 4)
