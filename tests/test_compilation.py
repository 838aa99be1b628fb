"""A step compiled before it runs."""

import logging

import jax
import jax.numpy as jnp
import pytest

from selecttkd_jax.compilation import compile_ahead, compile_on_first_call


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
