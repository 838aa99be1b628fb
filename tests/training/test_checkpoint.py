import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.training import Checkpoints, in_host_memory, init_state, read_trained


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
    restored, position, identity, _ = again.restore(state_of(5))
    assert position == {"position": {"next_index": 3}} and int(restored.step) == 3 and identity == {}
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


def save_steps(directory, steps=(1, 2, 3), **options):
    checkpoints = Checkpoints(directory, keep=9, **options)
    for step in steps:
        state = state_of(5, seed=7)
        state.step = jnp.int32(step)
        state.params = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
        checkpoints.save(state, {"next_index": 10 * step})
    checkpoints.close()


def restore(directory):
    checkpoints = Checkpoints(directory, keep=9)
    try:
        return checkpoints.restore(state_of(5))
    finally:
        checkpoints.close()


def assert_sound(restored, step):
    expected = jnp.arange(15.0).reshape(3, 5) + step
    assert int(restored.state.step) == step and restored.position == {"next_index": 10 * step}
    chex.assert_trees_all_equal(restored.state.params["layers"]["kernel"], expected)
    chex.assert_trees_all_equal(restored.state.opt_state, state_of(5).opt_state)


def test_what_the_run_was_made_with_comes_back(tmp_path):
    save_steps(tmp_path, identity={"rows": 17, "config": {"theta": 1e4}})
    assert restore(tmp_path).identity == {"rows": 17, "config": {"theta": 1e4}}


# Orbax leaves what it was reading beside the damaged part without waiting for it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_restores_another_state(tmp_path, caplog):
    """One bit anywhere in the newest checkpoint: the same state, or the one before it and a line that says so."""
    save_steps(tmp_path / "whole")
    files = sorted(path for path in (tmp_path / "whole/step_3").rglob("*") if path.is_file() and path.stat().st_size)
    random = np.random.default_rng(0)
    fallen_back = 0
    for number in range(24):
        directory = tmp_path / f"flipped_{number}"
        shutil.copytree(tmp_path / "whole", directory)
        victim = directory / files[number % len(files)].relative_to(tmp_path / "whole")
        content = bytearray(victim.read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        victim.write_bytes(content)
        caplog.clear()
        restored = restore(directory)
        step = int(restored.state.step)
        assert_sound(restored, step)
        assert step == 3 or (step == 2 and "checkpoint of step 3" in caplog.text and "step 2 is sound" in caplog.text)
        assert (directory / "damaged_step_3").exists() == (step == 2)
        fallen_back += step == 2
    assert fallen_back >= 8, "the flips hit nothing that is read"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["empty", "no state", "no record", "no metadata", "cut", "garbage record"])
def test_a_damaged_folder_is_named_and_the_one_before_it_used(tmp_path, caplog, damage):
    save_steps(tmp_path)
    newest = tmp_path / "step_3"
    if damage == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    elif damage in ("no state", "no record"):
        shutil.rmtree(newest / damage.removeprefix("no "))
    elif damage == "no metadata":
        (newest / "_CHECKPOINT_METADATA").unlink()
        (newest / "state/_METADATA").unlink()
    elif damage == "cut":
        for path in (newest / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (newest / "record/metadata").write_text("{]")
    assert_sound(restore(tmp_path), 2)
    assert "checkpoint of step 3" in caplog.text and (tmp_path / "damaged_step_3").is_dir()


def test_where_none_is_sound_each_one_is_named(tmp_path):
    save_steps(tmp_path, steps=(1, 2))
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"step_{step}/state")
    with pytest.raises(
        InputError, match=r"no checkpoint to resume from: step 2: .*; step 1: .*; choose another output"
    ):
        restore(tmp_path)
    assert (tmp_path / "step_2").is_dir()  # nothing was moved


def test_a_folder_that_says_another_step_than_it_holds_is_not_used_and_stops_no_save(tmp_path):
    save_steps(tmp_path)
    shutil.copytree(tmp_path / "step_2", tmp_path / "step_9")
    checkpoints = Checkpoints(tmp_path, keep=9)
    restored = checkpoints.restore(state_of(5))
    assert_sound(restored, 3)
    state = restored.state
    state.step = jnp.int32(4)
    checkpoints.save(state, {})
    checkpoints.close()
    assert (tmp_path / "step_4").is_dir() and (tmp_path / "damaged_step_9").is_dir()


def test_a_folder_of_a_later_step_put_there_meanwhile_stops_no_save(tmp_path):
    save_steps(tmp_path, steps=(1, 2))
    checkpoints = Checkpoints(tmp_path, keep=9)
    state = checkpoints.restore(state_of(5)).state
    shutil.copytree(tmp_path / "step_2", tmp_path / "step_9")
    for step in (3, 4):
        state.step = jnp.int32(step)
        checkpoints.save(state, {})
    checkpoints.close()
    assert {"step_3", "step_4"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("where", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value, where):
    checkpoints = Checkpoints(tmp_path)
    state = state_of(5)
    state.step = jnp.int32(1)
    spoiled = jax.tree.map(
        lambda leaf: leaf.at[(0,) * leaf.ndim].set(value) if leaf.dtype == jnp.float32 else leaf, getattr(state, where)
    )
    setattr(state, where, spoiled)
    with pytest.raises(InputError, match=f"step 1: {where}/.*kernel.* NaN or infinity; the state is not saved"):
        checkpoints.save(state, {})
    checkpoints.close()
    assert not list(tmp_path.glob("step_*"))


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7516192768 bytes."
# As TensorStore words it.
FULL_DISK = "RESOURCE_EXHAUSTED: Error writing: Failed to write 4 bytes: No space left on device [os_error_code='28']"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MemoryError),
        (jax.errors.JaxRuntimeError(OUT_OF_MEMORY), jax.errors.JaxRuntimeError),
        (ValueError(FULL_DISK), InputError),
    ],
    ids=["host", "device", "disk"],
)
def test_memory_that_ran_out_is_neither_a_failed_write_nor_damage(tmp_path, monkeypatch, error, expected):
    save_steps(tmp_path, steps=(1,))
    checkpoints, state = Checkpoints(tmp_path), state_of(5)
    state.step = jnp.int32(2)

    def fail(*arguments, **options):
        raise error

    for name, call in (
        ("save", lambda: checkpoints.save(state, {})),
        ("wait_until_finished", checkpoints.wait),
        ("close", checkpoints.close),
    ):
        with monkeypatch.context() as patch, pytest.raises(expected) as raised:
            patch.setattr(checkpoints._manager, name, fail)
            call()
        if expected is InputError:
            assert "could not be written (No space left on device); the same command resumes" in str(raised.value)
    checkpoints.close()
    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(expected):
        read_trained(tmp_path, 1, in_host_memory(state.params))


def test_weights_are_read_to_the_first_device_where_jax_leaves_the_cpu_out(tmp_path, monkeypatch):
    save_steps(tmp_path, steps=(1,))
    all_devices = jax.local_devices

    def without_cpu(*arguments, backend=None, **options):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu. Available backends are ['cuda']")
        return all_devices(*arguments, **options)

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    trained = read_trained(tmp_path, 1, in_host_memory(state_of(5).params))
    assert jnp.array_equal(trained.params["layers"]["kernel"], jnp.arange(15.0).reshape(3, 5) + 1)
