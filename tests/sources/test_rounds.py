"""The batches of several steps, written at once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax.data import Rows, batch_shapes, make_batches
from selecttkd_jax.generation import Sampling
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import OnPolicy, Stored, Writers
from selecttkd_jax.training import Frozen, Pair

LENGTH, ROWS = 24, 4
CONFIG = models.DecoderConfig(44, 16, 24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.3)


def stored_rows():
    random = np.random.default_rng(0)
    tokens = tuple(random.integers(6, 40, 8 + row % 5).astype(np.int32) for row in range(17))
    response = tuple(np.arange(len(row)) >= 3 + number % 4 for number, row in enumerate(tokens))
    return Rows(tokens, response, LENGTH, len(tokens))


@pytest.fixture(scope="module", params=[MeshConfig(), MeshConfig(data=2)], ids=["alone", "mesh"])
def make_source(request):
    rows, mesh = stored_rows(), make_mesh(request.param)
    write = Writers(mesh, Pair(student=CONFIG, teacher=None, vocab_size=40), Frozen(), (3, 5), longest_prompt=6)
    rewrite = write("student", Sampling(temperature=1.0, max_new_tokens=8))

    def make(round_steps, by_row):
        stored = Stored(make_batches(rows, ROWS, LENGTH, seed=1), batch_shapes(ROWS, LENGTH))
        return OnPolicy(stored, rewrite, lambda step: 0.6, mesh, by_row=by_row, round_steps=round_steps)

    with jax.set_mesh(mesh):
        yield make


def state_at(step, seed=0):
    return SimpleNamespace(step=step, key=jax.random.key(5), params=models.init_params(CONFIG, jax.random.key(seed)))


@pytest.mark.parametrize("by_row", [False, True])
def test_a_round_writes_what_its_steps_would_have_written(make_source, by_row):
    """By weights that do not change, whatever the mesh: each row draws with its own step's key."""
    one_by_one, at_once = make_source(1, by_row), make_source(3, by_row)
    for step in range(6):
        alone, together = one_by_one.next(state_at(step)), at_once.next(state_at(step))
        jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_a_round_is_written_by_the_weights_at_its_first_step(make_source):
    changing, still = make_source(3, True), make_source(3, True)
    for step in range(6):
        found = changing.next(state_at(step, seed=step))
        jax.tree.map(np.testing.assert_array_equal, found, still.next(state_at(step, seed=step - step % 3)))


def test_the_state_holds_what_is_left_of_a_round(make_source):
    """Other weights than those that wrote it are at hand when a run resumes within it."""
    whole, before = make_source(3, True), make_source(3, True)
    expected = [whole.next(state_at(step, seed=step)) for step in range(6)]
    for step in range(4):
        before.next(state_at(step, seed=step))
    resumed = make_source(3, True)
    resumed.set_state(before.get_state())
    for step in (4, 5):
        jax.tree.map(np.testing.assert_array_equal, resumed.next(state_at(step, seed=99)), expected[step])
