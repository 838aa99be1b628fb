"""The gradient formulas of the paper's appendix F, in float64: against autodiff, finite differences and the library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import divergences as oracle

from selecttkd_jax import losses

ALPHA = 0.1


def softmax(z):
    return jnp.exp(z) / jnp.sum(jnp.exp(z))


# Each divergence as the paper defines it, on probabilities; autodiff does the rest.
def kl(a, b):
    return jnp.sum(a * jnp.log(a / b))


DEFINITIONS = {
    "forward_kl": lambda q, p: kl(p, q),
    "reverse_kl": lambda q, p: kl(q, p),
    "skew_kl": lambda q, p: kl(p, ALPHA * p + (1 - ALPHA) * q),
    "skew_reverse_kl": lambda q, p: kl(q, (1 - ALPHA) * p + ALPHA * q),
}
# dD/dq as the paper states it.
SLOPES = {
    "forward_kl": lambda q, p: -p / q,
    "reverse_kl": lambda q, p: np.log(q / p) + 1,
    "skew_kl": lambda q, p: -(1 - ALPHA) * p / (ALPHA * p + (1 - ALPHA) * q),
    "skew_reverse_kl": lambda q, p: (
        np.log(q / ((1 - ALPHA) * p + ALPHA * q)) + 1 - ALPHA * q / ((1 - ALPHA) * p + ALPHA * q)
    ),
}
LIBRARY = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": partial(losses.skew_kl, alpha=ALPHA),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=ALPHA),
}
ORACLE = {
    "forward_kl": oracle.forward_kl,
    "reverse_kl": oracle.reverse_kl,
    "skew_kl": partial(oracle.skew_kl, alpha=ALPHA),
    "skew_reverse_kl": partial(oracle.skew_reverse_kl, alpha=ALPHA),
}
each = pytest.mark.parametrize("name", DEFINITIONS)
V = 13


def logits(seed, spread=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, spread, V), rng.normal(0, spread, V)


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def finite_differences(function, x, step=1e-5):
    shifts = step * np.eye(len(x))
    return np.array([(function(x + s) - function(x - s)) / (2 * step) for s in shifts])


def test_softmax_jacobian():
    z = logits(0)[0]
    q = oracle.softmax(z)
    formula = np.diag(q) - np.outer(q, q)
    with jax.enable_x64(True):
        assert relative_error(jax.jacobian(softmax)(jnp.asarray(z)), formula) < 1e-12
    differences = finite_differences(oracle.softmax, z).T
    assert relative_error(differences, formula) < 1e-6


@each
def test_slope_in_probabilities(name):
    q, p = (oracle.softmax(z) for z in logits(1))
    formula = SLOPES[name](q, p)
    with jax.enable_x64(True):
        autodiff = jax.jit(jax.grad(DEFINITIONS[name]))(jnp.asarray(q), jnp.asarray(p))
        assert relative_error(autodiff, formula) < 1e-12


@each
@pytest.mark.parametrize("seed", range(3))
def test_logit_gradient(name, seed):
    zq, zp = logits(10 + seed)
    q, p = oracle.softmax(zq), oracle.softmax(zp)
    g = SLOPES[name](q, p)
    formula = q * (g - np.dot(q, g))
    assert relative_error(ORACLE[name](zq, zp)[1], formula) < 1e-12
    assert relative_error(finite_differences(lambda z: ORACLE[name](z, zp)[0], zq), formula) < 1e-6
    with jax.enable_x64(True):
        autodiff = jax.jit(jax.grad(lambda z: DEFINITIONS[name](softmax(z), jnp.asarray(p))))(jnp.asarray(zq))
        ours = jax.jit(jax.grad(LIBRARY[name]))(jnp.asarray(zq), jnp.asarray(zp))
        assert ours.dtype == jnp.float64
    assert relative_error(autodiff, formula) < 1e-6
    assert relative_error(ours, formula) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
def test_gradients_vanish_at_the_fixed_point(alpha):
    zp = logits(20)[1]
    with jax.enable_x64(True):
        zp = jnp.asarray(zp)
        for function in (
            losses.forward_kl,
            losses.reverse_kl,
            partial(losses.skew_kl, alpha=alpha),
            partial(losses.skew_reverse_kl, alpha=alpha),
            partial(losses.skew_reverse_kl, alpha=alpha, detach_mixture=True),
        ):
            gradient = jax.jit(jax.grad(function))(zp + 2.5, zp)  # a constant shift is the same distribution
            assert np.abs(gradient).max() < 1e-13


def test_detached_mixture_is_steeper_by_one_over_one_minus_alpha():
    zq, zp = logits(30)
    with jax.enable_x64(True):
        near = jnp.asarray(zp + 1e-6 * zq)
        whole, detached = (
            jax.grad(partial(losses.skew_reverse_kl, alpha=0.1, detach_mixture=d))(near, jnp.asarray(zp))
            for d in (False, True)
        )
    np.testing.assert_allclose(detached, np.asarray(whole) / 0.9, rtol=1e-4, atol=1e-12)


@each
def test_gradient_descent_reaches_the_teacher(name):
    zq, zp = (jnp.asarray(z, jnp.float32) for z in logits(40, spread=1.5))
    gradient = jax.grad(LIBRARY[name])

    @jax.jit
    def descend(z):
        return jax.lax.fori_loop(0, 20_000, lambda _, z: z - 2.0 * gradient(z, zp), z)

    assert losses.total_variation(zq, zp) > 0.25
    assert losses.total_variation(descend(zq), zp) < 1e-3


def test_second_derivative_of_forward_kl_is_the_fisher_matrix():
    zq, zp = logits(50)
    q = oracle.softmax(zq)
    with jax.enable_x64(True):
        hessian = jax.hessian(losses.forward_kl)(jnp.asarray(zq), jnp.asarray(zp))
    assert relative_error(hessian, np.diag(q) - np.outer(q, q)) < 1e-10


def held(value):
    return jax.lax.stop_gradient(value)


def adaptive_kl(q, p):
    """With the head of the tokens 0 to 2: the two shares are constants."""
    gap = jnp.abs(p - q)
    share = held(jnp.sum(gap[:3]) / jnp.sum(gap))
    return share * kl(p, q) + (1 - share) * kl(q, p)


# What is held constant is so in every derivative: the definitions with their constants, differentiated twice.
HESSIANS = {
    "forward_kl": (losses.forward_kl, DEFINITIONS["forward_kl"]),
    "reverse_kl": (losses.reverse_kl, DEFINITIONS["reverse_kl"]),
    "skew_kl": (LIBRARY["skew_kl"], DEFINITIONS["skew_kl"]),
    "skew_reverse_kl": (LIBRARY["skew_reverse_kl"], DEFINITIONS["skew_reverse_kl"]),
    "detached skew_reverse_kl": (
        partial(losses.skew_reverse_kl, alpha=ALPHA, detach_mixture=True),
        lambda q, p: kl(q, (1 - ALPHA) * p + ALPHA * held(q)),
    ),
    "jensen_shannon": (
        losses.jensen_shannon,
        lambda q, p: 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q)),
    ),
    "hellinger": (
        losses.hellinger,
        lambda q, p: jnp.sqrt(0.5 * jnp.sum((jnp.sqrt(p) - jnp.sqrt(q)) ** 2)),
    ),
    "adaptive_kl": (losses.adaptive_kl, adaptive_kl),
}


@pytest.mark.parametrize("name", HESSIANS)
@pytest.mark.parametrize("excluded", [0, 4])
def test_hessians_are_those_of_the_definitions_also_beside_excluded_tokens(name, excluded):
    ours, definition = HESSIANS[name]
    zq, zp = logits(60, spread=1.0)
    # The head of half the mass: tokens 0 to 2 have 0.47, the next most likely one passes it.
    zp = np.log(np.array([0.2, 0.15, 0.12, *np.full(V - 3 - excluded, 0.53 / (V - 3 - excluded)), *np.ones(excluded)]))
    if excluded:
        zq[-excluded:] = zp[-excluded:] = -np.inf
    open_ = slice(0, V - excluded)
    with jax.enable_x64(True):
        p = softmax(jnp.asarray(zp[open_]))
        expected = jax.jit(jax.hessian(lambda z: definition(softmax(z), p)))(jnp.asarray(zq[open_]))
        found = jax.jit(jax.hessian(ours))(jnp.asarray(zq), jnp.asarray(zp))
        in_reverse = jax.jit(jax.jacrev(jax.grad(ours)))(jnp.asarray(zq), jnp.asarray(zp))
        value_slope = jax.jit(jax.grad(lambda z: jax.value_and_grad(ours)(z, jnp.asarray(zp))[0]))(jnp.asarray(zq))
        gradient = jax.jit(jax.grad(ours))(jnp.asarray(zq), jnp.asarray(zp))
    assert relative_error(found[open_, open_], np.asarray(expected)) < 1e-9
    assert np.all(np.asarray(found)[V - excluded :] == 0) and np.all(np.asarray(found)[:, V - excluded :] == 0)
    np.testing.assert_allclose(in_reverse, found, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(value_slope, gradient)


def test_at_the_tip_of_hellingers_cone_every_derivative_is_zero():
    z = jnp.asarray(logits(70)[0], jnp.float32)
    assert np.all(np.asarray(jax.grad(losses.hellinger)(z, z)) == 0)
    assert np.all(np.asarray(jax.hessian(losses.hellinger)(z, z)) == 0)
