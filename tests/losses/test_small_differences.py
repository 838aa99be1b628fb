"""Where float32 has few digits to spare: nearly equal distributions, underflow, probabilities next to 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import losses


def log_softmax64(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("function", [losses.forward_kl, losses.reverse_kl, losses.skew_kl, losses.jensen_shannon])
def test_the_same_distribution_from_other_logits_is_never_below_zero(function):
    """A constant added to the logits moves every rounding and no probability."""
    rng = np.random.default_rng(0)
    teacher = jnp.asarray(4 * rng.normal(size=(16, 20_011)), jnp.float32)
    values = np.asarray(function(teacher + 7.3, teacher))
    assert values.min() >= 0 and values.max() < 1e-6


def test_a_skew_of_zero_is_the_plain_divergence_where_the_student_underflows():
    teacher = jnp.array([[0.0, 0.0, -3.0]])
    student = jnp.array([[0.0, -200.0, -1.0]])
    expected = losses.forward_kl(student, teacher)
    assert 90 < float(expected[0]) < 110
    np.testing.assert_allclose(losses.skew_kl(student, teacher, alpha=0.0), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.skew_reverse_kl(teacher, student, alpha=0.0), expected, rtol=1e-6)
    q, p = np.exp(log_softmax64(student)), np.exp(log_softmax64(teacher))
    per_row = jnp.zeros((1, 1))
    for alpha in (0.0, per_row):
        gradient = jax.grad(lambda z, alpha=alpha: losses.skew_kl(z, teacher, alpha=alpha).sum())(student)
        np.testing.assert_allclose(gradient, q - p, atol=1e-7)


def test_a_head_of_all_mass_is_forward_kl_whatever_rounding_makes_of_the_mass():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(4 * rng.normal(size=(64, 1000)), jnp.float32) for _ in range(2))
    for boundary in ("tail", "head"):
        value = losses.adaptive_kl(student, teacher, mu=1.0, boundary=boundary)
        np.testing.assert_allclose(value, losses.forward_kl(student, teacher), rtol=1e-6)


def test_disjoint_distributions_are_no_further_apart_than_one():
    rng = np.random.default_rng(1)
    logits = 4 * rng.normal(size=(2, 64, 500)).astype(np.float32)
    logits[0, :, ::2] = logits[1, :, 1::2] = -np.inf
    distance = np.asarray(losses.total_variation(jnp.asarray(logits[0]), jnp.asarray(logits[1])))
    assert distance.max() == 1.0 and distance.min() > 1 - 1e-5


def test_the_target_gradient_has_its_digits_next_to_certainty():
    """dTCKD/dz[g] = q(g) - p(g) = rest(p) - rest(q), here of 1e-7 and 3e-7."""
    labels = jnp.array([0])
    logits = {rest: jnp.log(jnp.array([[1.0 - rest, 0.25 * rest, 0.75 * rest]], jnp.float32)) for rest in (1e-7, 3e-7)}
    rest = {name: 1 - np.exp(log_softmax64(value))[0, 0] for name, value in logits.items()}
    gradient = jax.grad(lambda z: losses.target_kl(z, logits[1e-7], labels).sum())(logits[3e-7])
    assert float(gradient[0, 0]) == pytest.approx(rest[1e-7] - rest[3e-7], rel=1e-4)
    np.testing.assert_allclose(gradient[0, 1:], -gradient[0, 0] * np.array([0.25, 0.75]), rtol=1e-5)
