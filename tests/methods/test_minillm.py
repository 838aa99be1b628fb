"""Rounds of rollouts: what they hold, in which order they are passed over, and how they are saved and sharded."""

import json
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from selecttkd_jax import methods, models, sources
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, batch_shapes
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.sharding import MeshConfig, make_mesh, place_batch
from selecttkd_jax.training import Frozen, Pair, init_state, make_train_step

pytestmark = pytest.mark.one_stack

SHAPE = {"hidden_size": 8, "mlp_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "init_scale": 0.4}
STUDENT = models.DecoderConfig(vocab_size=20, num_layers=1, **SHAPE)
TEACHER = models.DecoderConfig(vocab_size=18, num_layers=2, **SHAPE)
PAIR = Pair(student=STUDENT, teacher=TEACHER, vocab_size=17)
ROWS, LENGTH, MASK = 4, 7, np.arange(7)[None, :] < np.array([6, 2, 0, 4])[:, None]
REWARDS = sources.Rewards(teacher_share=0.3, discount=0.5)
ONE_DEVICE = MeshConfig()


class Counting:
    """A source of written batches, whose rows are told apart by their first token; the position is a count."""

    shapes = batch_shapes(ROWS, LENGTH)

    def __init__(self):
        self.taken = 0

    def next(self, state):
        rng = np.random.default_rng(self.taken)
        ids = rng.integers(0, 17, (ROWS, LENGTH)).astype(np.int32)
        ids[:, 0] = (self.taken * ROWS + np.arange(ROWS)) % 17
        self.taken += 1
        positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
        return Batch(ids, np.pad(ids[:, 1:], ((0, 0), (0, 1))), MASK, positions, np.ones_like(ids))

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


@pytest.fixture(scope="module")
def params():
    return models.init_params(STUDENT, jax.random.key(2)), models.init_params(TEACHER, jax.random.key(1))


def make_source(params, mesh, *, pair=PAIR, passes=2):
    score = sources.Scorer(mesh, pair, Frozen(params[1]))
    return sources.RolloutBuffer(Counting(), score, REWARDS, mesh, round_steps=2, passes=passes)


def states(student, count):
    state = init_state(student, optax.sgd(1.0), seed=0)
    return [replace(state, step=np.int32(number)) for number in range(count)]


def test_a_round_is_written_once_and_passed_over_in_a_new_order_each_time(params):
    source = make_source(params, make_mesh(ONE_DEVICE), passes=3)
    with jax.set_mesh(make_mesh(ONE_DEVICE)):
        firsts = [source.next(state).rows.input_ids[:, 0].tolist() for state in states(params[0], 7)]
    passes = [firsts[start] + firsts[start + 1] for start in (0, 2, 4)]
    assert [sorted(rows) for rows in passes] == [list(range(8))] * 3
    assert len({tuple(rows) for rows in passes}) == 3
    assert all((row - 8) % 17 < 8 for row in firsts[6]), "the next round has rows of its own"


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_round_is_resumed_to_the_bit(params, at):
    mesh = make_mesh(ONE_DEVICE)
    source, resumed = make_source(params, mesh), make_source(params, mesh)
    with jax.set_mesh(mesh):
        for state in states(params[0], at):
            source.next(state)
        resumed.set_state(json.loads(json.dumps(source.get_state())))
        for state in states(params[0], 6)[at:]:
            jax.tree.map(np.testing.assert_array_equal, source.next(state), resumed.next(state))
    assert (source.get_state()["round"] is None) == (resumed.get_state()["round"] is None)


def test_what_is_used_up_is_not_saved(params):
    mesh = make_mesh(ONE_DEVICE)
    source = make_source(params, mesh)
    with jax.set_mesh(mesh):
        kept = [source.next(state) and source.get_state()["round"] is not None for state in states(params[0], 5)]
    assert kept == [True, True, True, False, True]


def test_returns_are_discounted_and_divided_by_what_remains():
    log_q, log_p = np.log(np.array([[0.5, 0.1, 0.2, 0.9]])), np.log(np.array([[0.25, 0.4, 0.2, 0.1]]))
    mask = np.array([[True, True, True, False]])
    rewards = 2 * np.log([0.5, 4.0, 1.0])
    returns = np.array(
        [(rewards[0] + rewards[1] / 2 + rewards[2] / 4) / 3, (rewards[1] + rewards[2] / 2) / 2, rewards[2]]
    )
    found = REWARDS.advantages(log_q, log_p, mask)
    np.testing.assert_allclose(found[0, :3], (returns - returns.mean()) / returns.std(), rtol=1e-6)
    assert found[0, 3] == 0
    np.testing.assert_allclose(REWARDS.importance(log_q, log_p)[0, 0], 0.5 / (0.7 * 0.5 + 0.3 * 0.25))


def test_what_the_teacher_would_never_say_is_worth_the_limit_and_no_number_overflows():
    log_q, log_p = np.array([[-1e-3, -3e3, -1.0]]), np.array([[-3e3, -1e-3, -1.0]])
    found = replace(REWARDS, discount=0.0).advantages(log_q, log_p, np.ones((1, 3), bool))
    rewards = np.array([-100.0 / 3, 100.0 / 2, 0.0])
    np.testing.assert_allclose(found[0], (rewards - rewards.mean()) / rewards.std(), rtol=1e-6)
    np.testing.assert_allclose(REWARDS.importance(log_q, log_p), [[1 / 0.7, 0.0, 1.0]])


def take(source, params, mesh, *, pair=PAIR, seen=None, shared=None):
    """The first batch of a source whose round `params` wrote, and what a step of `seen` from it says."""
    shared = shared or ObjectiveConfig(verifier="accept_all", normalizer="token")
    parts = methods.Parts(pair=pair, objective=shared, stored=Counting(), mesh=mesh)
    step = make_train_step(methods.MiniLlm().build(parts).loss, optax.sgd(1.0))
    with jax.set_mesh(mesh):
        rollouts = source.next(init_state(params[0], optax.sgd(1.0), seed=0))
        state = init_state(params[0] if seen is None else seen, optax.sgd(1.0), seed=0)
        state, metrics = step(state, Frozen(params[1]), place_batch(mesh, rollouts, ROWS))
    return rollouts, state.params, metrics["sums"].means()


def test_the_first_step_of_a_round_has_the_ratio_of_importance(params):
    """q = q_old: what was scored is what the loss computes."""
    mesh = make_mesh(ONE_DEVICE)
    rollouts, _, means = take(make_source(params, mesh), params, mesh)
    assert means["tokens"] > 0
    assert means["ratio"] == pytest.approx(rollouts.importance.sum() / means["tokens"], rel=1e-6)


def test_a_student_that_is_its_teacher_has_no_rewards_and_no_divergence(params):
    mesh, same = make_mesh(ONE_DEVICE), (params[0], params[0])
    pair = replace(PAIR, teacher=STUDENT)
    source = make_source(same, mesh, pair=pair)
    rollouts, _, means = take(source, same, mesh, pair=pair)
    mask = rollouts.rows.loss_mask
    assert abs(means["regularizer"]) < 1e-6 and abs(means["surrogate"]) < 1e-2
    np.testing.assert_allclose(rollouts.importance[mask], 1.0, atol=1e-6)
    np.testing.assert_allclose(rollouts.advantage, 0.0, atol=1e-2)  # rounding over the root of epsilon


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2), MeshConfig(fsdp=2, tensor=2)], ids=["rows", "tensor"])
def test_a_mesh_scores_and_steps_as_one_device_does(params, mesh):
    seen = jax.tree.map(lambda leaf: 1.1 * leaf, params[0])
    shared = ObjectiveConfig(verifier="spec_k", k=2, floor=0.1)
    ours, theirs = (
        take(make_source(params, made), params, made, seen=seen, shared=shared)
        for made in (make_mesh(mesh), make_mesh(ONE_DEVICE))
    )
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


def test_a_ratio_beyond_float32_leaves_a_finite_step(params):
    mesh = make_mesh(ONE_DEVICE)
    source = make_source(params, mesh)
    source._score = lambda *_: (np.full((ROWS, LENGTH), -2e3, np.float32), np.zeros((ROWS, LENGTH), np.float32))
    _, after, means = take(source, params, mesh)
    assert np.isfinite(list(means.values())).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_what_does_not_go_with_a_policy_gradient_is_refused():
    with pytest.raises(InputError, match="normalizer cannot be weight"):
        methods.MiniLlm().check(ObjectiveConfig(normalizer="weight"))
    with pytest.raises(InputError, match="skip_rejected"):
        methods.MiniLlm().check(ObjectiveConfig(floor=0.0, skip_rejected=True))
    with pytest.raises(InputError, match="at temperature 1"):
        methods.MiniLlm(sampling=Sampling(temperature=0.9))
