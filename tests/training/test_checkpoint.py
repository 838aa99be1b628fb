import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from selecttkd_jax.checks import InputError
from selecttkd_jax.training import Checkpoints, init_state


def state_of(width, seed=0):
    return init_state({"layers": {"kernel": jnp.arange(3.0 * width).reshape(3, width)}}, optax.adam(0.1), seed)


def test_everything_comes_back_and_old_checkpoints_go(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step is None
    state = state_of(5, seed=7)
    for step in (1, 2, 3):
        state.step = jnp.int32(step)
        checkpoints.save(state, {"position": {"next_index": step}})
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    restored, data_state = again.restore(state_of(5))
    assert data_state == {"position": {"next_index": 3}} and int(restored.step) == 3
    chex.assert_trees_all_equal(restored.params, state.params)
    chex.assert_trees_all_equal(restored.opt_state, state.opt_state)
    assert jnp.array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    again.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_2", "step_3"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state_of(5), {})
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(InputError, match=r"another model: .*kernel.* is \(3, 5\) there and \(3, 4\) here"):
        again.restore(state_of(4))
    again.close()
