"""Mistakes are refused when the function is traced, with what was expected and what was found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import losses
from selecttkd_jax._errors import InputError

z = jnp.zeros((2, 7))
labels = jnp.zeros(2, jnp.int32)
two_models = [
    losses.forward_kl,
    losses.reverse_kl,
    losses.skew_kl,
    losses.skew_reverse_kl,
    losses.jensen_shannon,
    losses.total_variation,
    losses.hellinger,
    losses.adaptive_kl,
    losses.soft_cross_entropy,
    lambda q, p: losses.target_kl(q, p, labels),
    lambda q, p: losses.non_target_kl(q, p, labels),
]


def trace(function, *arguments):
    return jax.eval_shape(function, *arguments)


@pytest.mark.parametrize("function", two_models)
def test_shapes_and_dtypes(function):
    with pytest.raises(InputError, match=r"same shape, got \(2, 7\) and \(2, 8\)"):
        trace(function, z, jnp.zeros((2, 8)))
    with pytest.raises(InputError, match="same shape"):
        trace(function, z, jnp.zeros((1, 7)))
    with pytest.raises(TypeError, match="student_logits must be floating point, got int32"):
        trace(function, z.astype(jnp.int32), z)
    with pytest.raises(TypeError, match="teacher_logits must be floating point, got int32"):
        trace(function, z, z.astype(jnp.int32))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2.0, float("nan")])
def test_skew_out_of_range(alpha):
    for function in (losses.skew_kl, losses.skew_reverse_kl):
        with pytest.raises(InputError, match=r"alpha must be in \[0.0, 1.0\), got"):
            trace(partial(function, alpha=alpha), z, z)


def test_arrays_of_skews_are_checked_too():
    with pytest.raises(InputError, match="alpha must be in"):
        losses.skew_kl(z, z, alpha=jnp.array([[0.1], [1.5]]))


@pytest.mark.parametrize(("beta", "instead"), [(0, "forward_kl"), (1.0, "reverse_kl")])
def test_beta_at_its_ends_names_the_divergence_meant(beta, instead):
    with pytest.raises(InputError, match=f"strictly between 0 and 1, got {beta}.*losses.{instead}"):
        losses.jensen_shannon(z, z, beta=beta)


def test_other_options_out_of_range():
    with pytest.raises(InputError, match="beta must be in"):
        losses.jensen_shannon(z, z, beta=1.5)
    for mu in (-0.1, 1.5):
        with pytest.raises(InputError, match="mu must be in"):
            losses.adaptive_kl(z, z, mu=mu)
    with pytest.raises(InputError, match="boundary must be one of tail, head; got 'tial'.*'tail'"):
        losses.adaptive_kl(z, z, boundary="tial")


def test_labels():
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        trace(losses.cross_entropy, z, jnp.zeros(2))
    with pytest.raises(InputError, match=r"labels must have the shape of the positions, \(2,\), got \(3,\)"):
        trace(losses.cross_entropy, z, jnp.zeros(3, jnp.int32))
    with pytest.raises(TypeError, match="student_logits must be floating point"):
        trace(losses.cross_entropy, z.astype(jnp.int32), labels)
    with pytest.raises(TypeError, match="logits must be floating point"):
        trace(losses.entropy, z.astype(jnp.int32))


@pytest.mark.parametrize("beta", [0, 1.0, np.float32(1), jnp.array([[0.0], [0.5]])])
def test_jensen_shannon_refuses_its_empty_ends_however_they_are_written(beta):
    logits = jnp.zeros((2, 5))
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        losses.jensen_shannon(logits, logits, beta=beta)


@pytest.mark.parametrize("shape", [(7,), (4, 1, 1)])
def test_an_option_along_the_vocabulary_or_of_other_positions_is_refused(shape):
    logits = jnp.zeros((3, 7))
    with pytest.raises(ValueError, match="a last one of size 1"):
        losses.skew_kl(logits, logits, alpha=jnp.full(shape, 0.1))


@pytest.mark.parametrize("dtype, vocabulary", [(np.int8, 300), (np.uint16, 70_000)])
def test_labels_of_narrow_dtypes_meet_their_own_column(dtype, vocabulary):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, vocabulary)), jnp.float32)
    wide = losses.cross_entropy(logits, jnp.array([3, 100], jnp.int32))
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([3, 100], dtype)), wide, rtol=1e-6)
