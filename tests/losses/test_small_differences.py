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


@pytest.mark.parametrize("vocabulary", [7, 1_000])
def test_hellingers_gradient_between_equal_distributions_is_no_noise(vocabulary):
    """Shifted logits leave a distance of rounding, 1e-7; its slope would be of full size."""
    teacher = jnp.asarray(4 * np.random.default_rng(0).normal(size=(16, vocabulary)), jnp.float32)
    for shift in (1.0, 7.3, -3.1):
        distance, gradient = jax.value_and_grad(lambda z: jnp.max(losses.hellinger(z, teacher)))(teacher + shift)
        assert 0 < distance < 1e-6
        np.testing.assert_array_equal(gradient, 0.0)
    apart = teacher.at[:, 0].add(1e-4)
    gradients = jax.grad(lambda z: jnp.sum(losses.hellinger(z, teacher)))(apart)
    assert np.abs(gradients).max() > 0.01


@pytest.mark.parametrize("boundary", ["tail", "head"])
def test_the_top_token_never_leaves_the_head(boundary):
    """With 0.9 it passes a head of half the mass by itself; without it the head would be empty."""
    teacher, student = jnp.log(jnp.array([0.9, 0.06, 0.04])), jnp.log(jnp.array([0.7, 0.1, 0.2]))
    # |p - q| is 0.2, 0.04 and 0.16.
    wanted = 0.5 * losses.forward_kl(student, teacher) + 0.5 * losses.reverse_kl(student, teacher)
    np.testing.assert_allclose(losses.adaptive_kl(student, teacher, boundary=boundary), wanted, rtol=1e-5)
    np.testing.assert_allclose(losses.adaptive_kl(student, teacher, mu=0.0, boundary=boundary), wanted, rtol=1e-5)
    tied = jnp.log(jnp.array([0.4, 0.4, 0.2]))
    everything_but_the_last = 0.3 / 0.6
    value = losses.adaptive_kl(jnp.log(jnp.array([0.3, 0.2, 0.5])), tied, mu=0.0, boundary=boundary)
    forward, reverse = (f(jnp.log(jnp.array([0.3, 0.2, 0.5])), tied) for f in (losses.forward_kl, losses.reverse_kl))
    share = everything_but_the_last
    np.testing.assert_allclose(value, share * forward + (1 - share) * reverse, rtol=1e-5)


def test_a_share_of_zero_silences_an_infinite_divergence():
    """Both agree on the head, so all weight is on the reverse divergence; forward KL is infinite."""
    teacher, student = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.log(jnp.array([0.6, 0.4, 0.0]))
    assert np.isinf(losses.forward_kl(student, teacher))
    value, gradient = jax.value_and_grad(losses.adaptive_kl)(student, teacher)
    np.testing.assert_allclose(value, losses.reverse_kl(student, teacher), rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_where_only_the_target_is_possible_nothing_is_left_to_compare():
    certain = jnp.array([[-jnp.inf, 2.0, -jnp.inf]])
    labels = jnp.array([1])
    for other in (certain, jnp.array([[0.0, 2.0, 1.0]])):
        value, gradient = jax.value_and_grad(lambda z, p: jnp.sum(losses.non_target_kl(z, p, labels)))(other, certain)
        assert value == 0 and np.all(np.asarray(gradient) * 0 == 0)


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


LABEL = jnp.array([1])
TWO_MODELS = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": losses.skew_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
    "adaptive_kl": losses.adaptive_kl,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "soft_cross_entropy": losses.soft_cross_entropy,
    "target_kl": lambda q, p: losses.target_kl(q, p, LABEL),
    "non_target_kl": lambda q, p: losses.non_target_kl(q, p, LABEL),
    "cross_entropies": lambda q, p: losses.cross_entropy(q, LABEL) + losses.cross_entropy(p, LABEL),
    "entropies": lambda q, p: losses.entropy(q) + losses.entropy(p),
}


@pytest.mark.parametrize("name", TWO_MODELS)
@pytest.mark.parametrize("token", [0, 1, 2])
def test_nan_in_either_model_shows(name, token):
    sound, broken = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0]]).at[0, token].set(jnp.nan)
    assert np.isfinite(TWO_MODELS[name](sound, sound))
    assert np.isnan(TWO_MODELS[name](broken, sound)) and np.isnan(TWO_MODELS[name](sound, broken))
