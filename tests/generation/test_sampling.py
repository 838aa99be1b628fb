"""The laws of the sampling rules, against sorted lists in plain Python and against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.generation._sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, sample

PROBABILITIES = [0.05, 0.4, 0.25, 0.1, 0.2]


def kept(logits):
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(logits)]


def smallest_set_reaching(probabilities, top_p):
    """The textbook nucleus: most likely first, up to and including the token that crosses the mass."""
    chosen, mass = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda v: -probabilities[v]):
        chosen.add(token)
        mass += probabilities[token]
        if mass >= top_p:
            break
    return chosen


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 2}), (0.64, {1, 2}), (0.66, {1, 2, 4}), (0.96, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_the_token_that_crosses_the_mass(top_p, expected):
    assert kept(keep_top_p(jnp.log(jnp.array([PROBABILITIES])), top_p)) == [expected]


def test_top_p_keeps_all_of_a_mass_no_float_sum_reaches():
    assert kept(keep_top_p(jnp.log(jnp.array([PROBABILITIES])), 1 - 1e-12)) == [{0, 1, 2, 3, 4}]


def test_top_p_equals_the_sorted_rule_on_random_rows():
    logits = 3 * jax.random.normal(jax.random.key(0), (64, 101))
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    for top_p in (0.05, 0.9):
        expected = [smallest_set_reaching(row, top_p) for row in probabilities]
        assert kept(keep_top_p(logits, top_p)) == expected


def test_top_p_ignores_impossible_tokens():
    assert kept(keep_top_p(jnp.array([[0.0, -jnp.inf, 0.0]]), 0.999)) == [{0, 2}]


def test_top_p_survives_extreme_logits():
    assert kept(keep_top_p(jnp.array([[1e30, -1e30, 0.0]]), 0.5)) == [{0}]


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 4}), (5, {0, 1, 2, 3, 4}), (99, None)]
)
def test_top_k_keeps_the_k_most_likely(top_k, expected):
    expected = set(range(5)) if expected is None else expected
    assert kept(keep_top_k(jnp.log(jnp.array([PROBABILITIES])), top_k)) == [expected]


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.01, {0, 1, 2, 3, 4}), (0.2, {1, 2, 3, 4}), (0.3, {1, 2, 4}), (0.51, {1, 2}), (0.7, {1}), (1.0, {1})],
)
def test_min_p_keeps_what_is_at_least_that_share_as_likely_as_the_most_likely(min_p, expected):
    assert kept(keep_min_p(jnp.log(jnp.array([PROBABILITIES])), min_p)) == [expected]


def test_min_p_equals_the_rule_on_random_rows_whatever_was_cut_before():
    logits = 3 * jax.random.normal(jax.random.key(0), (64, 101))
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    expected = [set(np.flatnonzero(row >= 0.07 * row.max()).tolist()) for row in probabilities]
    assert kept(keep_min_p(logits, 0.07)) == expected
    assert kept(keep_min_p(keep_top_k(logits, 3), 0.07)) == [
        chosen & set(np.argsort(row)[-3:].tolist()) for chosen, row in zip(expected, probabilities, strict=True)
    ]


def frequencies(sampling, draws=20_000):
    logits = jnp.tile(jnp.log(jnp.array([PROBABILITIES])), (draws, 1))
    tokens = jax.jit(sample, static_argnums=2)(logits, jax.random.split(jax.random.key(1), draws), sampling)
    return np.bincount(np.asarray(tokens), minlength=5) / draws


@pytest.mark.parametrize(
    ("sampling", "law"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), np.square(PROBABILITIES) / np.sum(np.square(PROBABILITIES))),
        (Sampling(top_p=0.6), np.array([0, 0.4, 0.25, 0, 0]) / 0.65),
        (Sampling(top_k=3), np.array([0, 0.4, 0.25, 0, 0.2]) / 0.85),
        # Renormalised after top-k: 0.4 / 0.85 is below 0.6, (0.4 + 0.25) / 0.85 is above.
        (Sampling(top_k=3, top_p=0.6), np.array([0, 0.4, 0.25, 0, 0]) / 0.65),
        (Sampling(min_p=0.45), np.array([0, 0.4, 0.25, 0, 0.2]) / 0.85),
        (Sampling(top_p=0.6, min_p=0.7), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0), [0, 1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_law(sampling, law):
    # Four standard errors of a frequency over 20,000 draws.
    np.testing.assert_allclose(frequencies(sampling), law, atol=4 * np.sqrt(0.25 / 20_000))


def test_a_rows_draw_depends_on_its_own_key_only():
    logits = jax.random.normal(jax.random.key(2), (6, 37))
    keys = jax.random.split(jax.random.key(3), 6)
    together = sample(logits, keys, Sampling(top_p=0.9))
    alone = [sample(logits[i : i + 1], keys[i : i + 1], Sampling(top_p=0.9))[0] for i in range(6)]
    assert together.tolist() == [int(token) for token in alone]


def test_low_precision_logits_are_read_in_float32():
    logits = jnp.array([[0.0, 3.0, 1.0]], jnp.bfloat16)
    assert sample(logits, jax.random.split(jax.random.key(0), 1), Sampling(top_p=0.5, top_k=2)).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature must be finite"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.01}, r"top_p must be in \(0, 1\], got 1.01"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"min_p": float("nan")}, "min_p"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)
