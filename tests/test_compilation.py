"""A step compiled before it runs, and kept for the next process."""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.compilation import check_options, compile_ahead, compile_on_first_call


def make_step():
    return jax.jit(lambda state, batch: (state + batch, {"sum": jnp.sum(batch)}), donate_argnums=0)


def compilations(caplog):
    return [record for record in caplog.records if "Finished XLA compilation of jit(<lambda>)" in record.getMessage()]


@pytest.fixture(autouse=True)
def log_compilations(caplog):
    with jax.log_compiles(), caplog.at_level(logging.INFO):
        yield


def test_a_call_after_it_compiles_nothing_and_donates_as_before(caplog):
    step, state, batch = make_step(), jnp.ones(3), jnp.arange(3.0)
    compiled = compile_ahead(step, state, batch)
    assert len(compilations(caplog)) == 1
    assert not state.is_deleted()
    state_after, metrics = step(state, batch)
    assert len(compilations(caplog)) == 1
    assert state.is_deleted()
    assert state_after.tolist() == [1.0, 2.0, 3.0] and metrics["sum"] == 3.0
    assert compiled.memory_analysis() is not None


def test_a_step_is_compiled_once_and_the_log_says_so(caplog):
    step, state = compile_on_first_call(make_step()), jnp.ones(3)
    for _ in range(3):
        state, _ = step(state, jnp.ones(3))
    assert state.tolist() == [4.0, 4.0, 4.0]
    assert len(compilations(caplog)) == 1
    assert sum("compiled in" in record.getMessage() for record in caplog.records) == 1


def test_arguments_of_other_shapes_are_still_taken():
    step = compile_on_first_call(make_step())
    step(jnp.ones(3), jnp.ones(3))
    state, _ = step(jnp.ones(2), jnp.ones(2))
    assert state.tolist() == [2.0, 2.0]


KEEP = """
import jax, sys
from selecttkd_jax.compilation import keep_programs

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: x - 1)(1.0)  # what was compiled before changes nothing
keep_programs(*sys.argv[1:])
jax.jit(lambda x: x + 1)(1.0)
print(jax.config.jax_compilation_cache_dir, len(hits))
"""


def keep(tmp_path, *words, **variables):
    """What a fresh process says: its folder, and how many programs it found there."""
    keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XDG_CACHE_HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment |= keep_all | variables
    done = subprocess.run([sys.executable, "-c", KEEP, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, hits = done.stdout.split()
    return folder, int(hits)


def test_the_next_process_finds_what_was_compiled(tmp_path):
    folder = str(tmp_path / "selecttkd_jax")
    assert keep(tmp_path) == (folder, 0)
    assert keep(tmp_path) == (folder, 1)


def test_a_folder_that_jax_knows_stays_and_off_is_off(tmp_path):
    known = str(tmp_path / "known")
    assert keep(tmp_path, str(tmp_path / "asked"), JAX_COMPILATION_CACHE_DIR=known)[0] == known
    assert keep(tmp_path, "off") == ("None", 0)
    assert not (tmp_path / "asked").exists() and not (tmp_path / "selecttkd_jax").exists()


AGAIN = """
import jax, sys
from selecttkd_jax.compilation import keep_programs

for folder in sys.argv[1:]:
    keep_programs(folder)
    print(jax.config.jax_compilation_cache_dir)
"""


def test_the_next_run_of_a_process_has_its_own_folder(tmp_path):
    folders = [str(tmp_path / "one"), str(tmp_path / "two"), "off"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run([sys.executable, "-c", AGAIN, *folders], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [*folders[:2], "None"], done.stderr


def test_a_folder_that_cannot_be_made_is_only_told(tmp_path):
    (tmp_path / "selecttkd_jax").touch()
    assert keep(tmp_path) == ("None", 0)


def test_options_are_checked_before_there_is_a_program_of_ours():
    check_options({})
    check_options({"xla_backend_optimization_level": "1"})
    with pytest.raises(InputError, match="No such compile option: 'xla_nonsense'"):
        check_options({"xla_nonsense": True})


def test_options_of_the_compiler_reach_it():
    known = compile_ahead(jax.jit(jnp.sin, compiler_options={"xla_backend_optimization_level": "1"}), 1.0)
    assert known(0.0) == 0.0
    for options, said in (
        ({"xla_nonsense": True}, "No such compile option: 'xla_nonsense'"),
        ({"xla_cpu_enable_fast_math": "perhaps"}, "'perhaps' is not a valid bool value"),
    ):
        with pytest.raises(InputError, match=rf"refuses an option \(mesh\.xla_flags\): .*{said}"):
            compile_ahead(jax.jit(jnp.sin, compiler_options=options), 1.0)
