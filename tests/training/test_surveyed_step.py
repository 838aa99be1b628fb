"""A rate, or a budget, is one of the whole batch: the same step in one part, in four, and on eight devices."""

from dataclasses import replace
from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from training.test_step import OBJECTIVE, PAIR, STUDENT, TEACHER

from selecttkd_jax import losses, models, selection, training
from selecttkd_jax.data import Batch
from selecttkd_jax.training import Frozen, OneStream, RankedStream, SurveyedStream, init_state, make_train_step

OF = partial(selection.spec_k, k=2)


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 23, (8, 11)).astype(np.int32)
    real = np.arange(11)[None, :] < np.array([11, 7, 3, 9, 5, 11, 2, 8])[:, None]
    positions = np.tile(np.arange(11, dtype=np.int32), (8, 1))
    mask = real & (np.arange(11)[None, :] >= 2)
    batch = Batch(ids, np.roll(ids, -1, axis=1), mask, positions, real.astype(np.int32))
    student, teacher = (models.init_params(c, jax.random.key(i)) for c, i in ((STUDENT, 2), (TEACHER, 1)))
    return batch, student, teacher


def take(parts, loss, **options):
    batch, student, teacher = parts
    optimizer = optax.sgd(1.0)
    return make_train_step(loss, optimizer, **options)(init_state(student, optimizer, seed=3), Frozen(teacher), batch)


def rate_of(parts):
    batch, student, teacher = parts
    return float(np.asarray(OF(*PAIR.logits(student, teacher, batch)))[batch.loss_mask].mean())


def at_rate(**options):
    return SurveyedStream(PAIR, replace(OBJECTIVE, verifier=selection.at_rate_of(OF)), **options)


def test_random_at_the_rate_of_another_in_parts_and_on_devices(parts):
    state, metrics = take(parts, at_rate())
    # By the draws that a step of this seed has.
    uniforms = jax.random.uniform(training.stream_key(jax.random.key(3), "verification", 0), (8, 11))
    accepted = (np.asarray(uniforms) < rate_of(parts))[parts[0].loss_mask]
    assert float(metrics["sums"].accepted) == accepted.sum() and 0 < accepted.mean() < 1
    cut, cut_metrics = take(parts, at_rate(), micro_batches=4)
    chex.assert_trees_all_close(cut.params, state.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(cut_metrics, metrics, rtol=1e-5)
    batch, student, teacher = parts
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put((student, teacher), NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        sharded, sharded_metrics = take((spread, *whole), at_rate())
    chex.assert_trees_all_close(sharded.params, state.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(sharded_metrics, metrics, rtol=1e-5)


def test_rescaled_is_all_tokens_times_the_mean_weight(parts):
    everything = replace(OBJECTIVE, verifier=selection.accept_all)
    _, plain = take(parts, OneStream(PAIR, everything))
    _, scaled = take(parts, at_rate(expected=True), micro_batches=2)
    mean_weight = OBJECTIVE.floor + (1 - OBJECTIVE.floor) * rate_of(parts)
    np.testing.assert_allclose(scaled["sums"].loss, mean_weight * plain["sums"].loss, rtol=1e-5)
    np.testing.assert_allclose(scaled["grad_norm"], mean_weight * plain["grad_norm"], rtol=1e-4)


def test_asked_without_a_survey_it_says_so():
    with pytest.raises(ValueError, match="a mean over the whole batch: take it first"):
        selection.at_rate_of(OF)(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))


def ranked(**options):
    objective = replace(OBJECTIVE, verifier=selection.accept_all)
    return RankedStream(PAIR, objective, expected=True, budget=selection.SelectionConfig(**options).build())


def test_a_budget_is_one_of_the_whole_batch(parts):
    batch, student, teacher = parts
    loss = ranked(score="forward_kl", fraction=0.3)
    state, metrics = take(parts, loss)
    # The kept set of a sort over the whole batch, by hand.
    scores = np.asarray(losses.forward_kl(*PAIR.logits(student, teacher, batch)))
    order = sorted(zip(*np.nonzero(batch.loss_mask), strict=True), key=lambda place: -scores[place])
    kept = np.zeros(scores.shape, np.float32)
    for place in order[: round(0.3 * batch.loss_mask.sum())]:
        kept[place] = 1.0
    wanted = OneStream(PAIR, loss.objective).sums_with(student, Frozen(teacher), batch, 0, None, kept)
    chex.assert_trees_all_close(metrics["sums"], wanted, rtol=1e-5)
    cut, cut_metrics = take(parts, loss, micro_batches=4)
    chex.assert_trees_all_close(cut.params, state.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(cut_metrics, metrics, rtol=1e-5)
    assert float(cut_metrics["sums"].accepted) == kept.sum()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        _, sharded = take((spread, *jax.device_put((student, teacher), NamedSharding(mesh, PartitionSpec()))), loss)
    chex.assert_trees_all_close(sharded, metrics, rtol=1e-5)


def test_random_scores_keep_as_many_in_any_number_of_parts(parts):
    _, whole = take(parts, ranked(score="random", fraction=0.3))
    _, cut = take(parts, ranked(score="random", fraction=0.3), micro_batches=2)
    chex.assert_trees_all_close(cut, whole, rtol=1e-5)
    assert float(whole["sums"].accepted) == round(0.3 * parts[0].loss_mask.sum())
    _, first = take(parts, ranked(score="random", fraction=0.3, after_step=1))
    assert float(first["sums"].accepted) == parts[0].loss_mask.sum()
