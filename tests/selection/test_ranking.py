"""Ranking scores against their formulas, and the rules that turn scores into a choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import divergences as oracle

from selecttkd_jax import selection

V = 23


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    student, teacher, reference = rng.normal(0, 3, (3, 3, 5, V)).astype(np.float32)
    labels = rng.integers(0, V, (3, 5)).astype(np.int32)
    return student, teacher, reference, labels


def each_position(function, *arrays):
    shape = arrays[0].shape[:2]
    return np.array([function(*(a[i] for a in arrays)) for i in np.ndindex(shape)]).reshape(shape)


def test_scores(batch):
    student, teacher, reference, labels = batch
    checks = {
        "excess": (
            selection.excess_loss(student, reference, labels),
            lambda q, p, r, y: oracle.cross_entropy(q, p, y)[0] - oracle.cross_entropy(r, p, y)[0],
        ),
        "gap": (
            selection.divergence_gap(student, teacher, reference),
            lambda q, p, r, y: oracle.forward_kl(q, p)[0] - oracle.forward_kl(r, p)[0],
        ),
        "norm": (
            selection.error_norm(student, labels),
            lambda q, p, r, y: np.linalg.norm(oracle.softmax(q) - np.eye(V)[y]),
        ),
        "uncertainty": (selection.target_uncertainty(teacher, labels), lambda q, p, r, y: 1 - oracle.softmax(p)[y]),
    }
    for scores, formula in checks.values():
        np.testing.assert_allclose(scores, each_position(formula, *batch), rtol=1e-5, atol=1e-5)


def test_scores_are_constants(batch):
    student, teacher, reference, labels = batch
    for score in (
        lambda z: selection.excess_loss(z, reference, labels),
        lambda z: selection.divergence_gap(z, teacher, reference),
        lambda z: selection.error_norm(z, labels),
        lambda z: selection.target_uncertainty(z, labels),
    ):
        assert np.all(np.asarray(jax.grad(lambda z, f=score: jnp.sum(f(z)))(student)) == 0)


def test_random_scores_depend_on_the_key_alone():
    a, b = (selection.random_scores(jax.random.key(i), (3, 5)) for i in (0, 1))
    np.testing.assert_array_equal(a, selection.random_scores(jax.random.key(0), (3, 5)))
    assert np.any(a != b)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("counting", ["nearest", "floor", "quantile"])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_top_fraction(fraction, counting, per_sequence):
    rng = np.random.default_rng(1)
    scores = rng.permutation(77).reshape(7, 11).astype(np.float32)
    mask = rng.random((7, 11)) < 0.7
    mask[3] = False
    kept = np.asarray(selection.top_fraction(scores, mask, fraction, per_sequence=per_sequence, counting=counting))
    assert kept.dtype == bool and not np.any(kept & ~mask)
    groups = [(kept[i], scores[i], mask[i]) for i in range(7)] if per_sequence else [(kept, scores, mask)]
    for chosen, values, valid in groups:
        valid_values = values[valid].astype(np.float64)
        n = len(valid_values)
        if fraction == 0 or n == 0:
            wanted = 0
        elif counting == "nearest":
            wanted = round(fraction * n)
        elif counting == "floor":
            wanted = int(n * fraction)
        else:
            wanted = int(np.sum(valid_values >= np.quantile(valid_values, 1 - fraction) - 1e-6))
        halves = counting == "nearest" and abs(fraction * n % 1 - 0.5) <= 1e-3
        assert abs(chosen.sum() - wanted) <= int(halves)
        if 0 < chosen.sum() < n:
            assert values[chosen].min() > values[valid & ~chosen].max()


def test_floor_counts_as_token_cleaning_does_and_drops_as_ent_does():
    """Theirs: `int(n * fraction)` in Python's numbers. 0.29 * 100 is 28.999..., 0.7 * 10 is 7."""
    mask = jnp.ones((1, 100), bool)
    scores = jnp.asarray(np.random.default_rng(2).permutation(100)[None], jnp.float32)
    for n in (1, 3, 7, 10, 50, 99, 100):
        for fraction in (0.07, 0.1, 0.14, 0.28, 0.29, 0.3, 0.57, 0.6, 0.7, 0.9, 0.99, 1.0):
            valid = mask & (jnp.arange(100) < n)[None]
            kept = selection.top_fraction(scores, valid, fraction, counting="floor")
            assert kept.sum() == int(n * fraction), (n, fraction)
            dropped = np.sort(np.asarray(scores[0, :n]))[::-1][: int(fraction * n)]
            ours = np.asarray(scores)[np.asarray(valid & kept)]
            np.testing.assert_array_equal(np.sort(ours)[::-1], dropped)
    traced = jax.jit(lambda fraction: selection.top_fraction(scores, mask, fraction, counting="floor"))
    assert [int(traced(fraction).sum()) for fraction in (0.0, 0.505, 1.0)] == [0, 50, 100]


def test_a_quantile_is_interpolated_and_what_reaches_it_is_kept_with_its_ties():
    scores, mask = jnp.array([[3.0, 1.0, 1.0, 1.0, 0.0]]), jnp.ones((1, 5), bool)
    # The 0.5-quantile is 1, which four reach; the 0.9-quantile 2.2, which one does.
    for fraction, wanted in ((0.5, 4), (0.1, 1), (0.25, 4), (1.0, 5)):
        assert selection.top_fraction(scores, mask, fraction, counting="quantile").sum() == wanted
    ranks = jnp.array([[3, 1, 1, 1, 0]])
    assert selection.top_fraction(ranks, mask, 0.5, counting="quantile").sum() == 4
    infinite = jnp.array([[jnp.inf, jnp.inf, 0.0, -jnp.inf, -jnp.inf]])
    for fraction, wanted in ((0.2, 2), (0.5, 3), (1.0, 5)):
        assert selection.top_fraction(infinite, mask, fraction, counting="quantile").sum() == wanted


def test_a_score_of_nan_ranks_behind_all_others():
    scores, mask = jnp.array([[jnp.nan, -jnp.inf, 2.0, jnp.nan]]), jnp.ones((1, 4), bool)
    kept = selection.top_fraction(scores, mask, 0.5)
    np.testing.assert_array_equal(kept, [[False, True, True, False]])
    np.testing.assert_array_equal(selection.at_most(scores, mask, 9.0), [[False, True, True, False]])


def test_two_models_that_exclude_the_label_are_equally_wrong():
    excluded, open_ = jnp.array([[0.0, -jnp.inf, 1.0]]), jnp.array([[0.0, 0.5, 1.0]])
    label = jnp.array([1])
    for score in (
        lambda a, b: selection.excess_loss(a, b, label),
        lambda a, b: selection.divergence_gap(a, open_, b),
    ):
        np.testing.assert_array_equal(score(excluded, excluded), [0.0])
        np.testing.assert_array_equal(score(excluded, 2.0 * excluded), [0.0])
        np.testing.assert_array_equal(score(excluded, open_), [jnp.inf])
        np.testing.assert_array_equal(score(open_, excluded), [-jnp.inf])


def test_ties_go_to_the_earlier_position_and_infinite_scores_are_scores():
    ones = jnp.ones((2, 3))
    mask = jnp.array([[False, True, True], [True, True, True]])
    np.testing.assert_array_equal(selection.top_fraction(ones, mask, 0.6), [[False, True, True], [True, False, False]])
    scores = jnp.array([[-jnp.inf, 5.0, jnp.inf]])
    all_but_middle = jnp.array([[True, False, True]])
    np.testing.assert_array_equal(selection.top_fraction(scores, all_but_middle, 1.0), all_but_middle)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_a_larger_fraction_keeps_a_superset(seed, fraction):
    rng = np.random.default_rng(seed)
    scores, mask = jnp.asarray(rng.integers(0, 5, (3, 5)), jnp.float32), jnp.asarray(rng.random((3, 5)) < 0.8)
    less, more = (selection.top_fraction(scores, mask, f) for f in (fraction, min(1.0, fraction + 0.2)))
    assert np.all(np.asarray(less) <= np.asarray(more))


def test_nothing_valid_keeps_nothing():
    scores, nothing = jnp.ones((2, 3)), jnp.zeros((2, 3), bool)
    for counting in ("nearest", "quantile"):
        assert not np.any(selection.top_fraction(scores, nothing, 0.5, counting=counting))
    assert not np.any(selection.median_split(scores, nothing))
    assert not np.any(selection.at_most(scores, nothing, 2.0))


def test_threshold_and_median():
    scores = jnp.array([[0.1, 0.9, 0.5], [0.5, 0.2, 0.7]])
    mask = jnp.array([[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(selection.at_most(scores, mask, 0.5), [[True, False, True], [True, True, False]])
    below, above = selection.median_split(scores, mask)  # valid: .1 .2 .5 .5 .9
    np.testing.assert_array_equal(below, [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(above, [[False, True, True], [True, False, False]])
    even_below, _ = selection.median_split(scores[:1, :2], mask[:1, :2])  # lower middle of .1 .9 is .1
    assert not np.any(even_below)


def test_everything_runs_under_jit(batch):
    student, _, reference, labels = batch
    mask = jnp.ones((3, 5), bool)

    @jax.jit
    def kept(q, r):
        return selection.top_fraction(selection.excess_loss(q, r, labels), mask, 0.6)

    assert kept(student, reference).sum() == 9


def test_a_sure_teacher_has_an_uncertainty_with_digits():
    logits = jnp.array([[18.0, 0.0, 0.0], [20.0, 0.0, 0.0], [25.0, 0.0, 0.0]])
    found = selection.target_uncertainty(logits, jnp.zeros(3, jnp.int32))
    wanted = [2 / (np.exp(x) + 2) for x in (18.0, 20.0, 25.0)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_fraction_may_be_traced():
    scores, mask = jnp.array([[0.1, 0.9, 0.5, 0.7]]), jnp.ones((1, 4), bool)
    chosen = jax.jit(lambda fraction: selection.top_fraction(scores, mask, fraction))
    assert [int(chosen(fraction).sum()) for fraction in (0.0, 0.5, 1.0)] == [0, 2, 4]
