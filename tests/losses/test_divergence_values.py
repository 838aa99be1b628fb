"""Every divergence against the NumPy float64 oracle: values and gradients, large vocabularies, both dtypes, masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import divergences as oracle

from selecttkd_jax import losses
from selecttkd_jax._errors import InputError

LABEL = 3

# name: (function of student and teacher logits [N, V], oracle of two vectors)
DIVERGENCES = {
    "forward_kl": (losses.forward_kl, oracle.forward_kl),
    "reverse_kl": (losses.reverse_kl, oracle.reverse_kl),
    "soft_cross_entropy": (losses.soft_cross_entropy, oracle.soft_cross_entropy),
    "total_variation": (losses.total_variation, oracle.total_variation),
    "hellinger": (losses.hellinger, oracle.hellinger),
}
for alpha in (0.0, 0.1, 0.7):
    options = {"alpha": alpha}
    DIVERGENCES[f"skew_kl-{alpha}"] = (partial(losses.skew_kl, **options), partial(oracle.skew_kl, **options))
    reverse = partial(losses.skew_reverse_kl, **options)
    DIVERGENCES[f"skew_reverse_kl-{alpha}"] = (reverse, partial(oracle.skew_reverse_kl, **options))
DIVERGENCES["skew_reverse_kl-detached"] = (
    partial(losses.skew_reverse_kl, alpha=0.1, detach_mixture=True),
    partial(oracle.skew_reverse_kl, alpha=0.1, detach=True),
)
for beta in (0.1, 0.5, 0.9):
    options = {"beta": beta}
    DIVERGENCES[f"jsd-{beta}"] = (partial(losses.jensen_shannon, **options), partial(oracle.jensen_shannon, **options))
for boundary in ("tail", "head"):
    options = {"mu": 0.5, "boundary": boundary}
    pair = (partial(losses.adaptive_kl, **options), partial(oracle.adaptive_kl, **options))
    DIVERGENCES[f"adaptive_kl-{boundary}"] = pair
for tail in (True, False):
    options = {"k": 4, "tail": tail}
    for function, reverse in ((losses.teacher_top_k_kl, False), (losses.teacher_top_k_reverse_kl, True)):
        pair = (partial(function, **options), partial(oracle.teacher_top_k, reverse=reverse, **options))
        DIVERGENCES[f"{function.__name__}-{'tail' if tail else 'alone'}"] = pair


def with_label(function, *, teacher=True, label=LABEL):
    def of_logits(zq, zp):
        labels = jnp.full(zq.shape[:-1], label)
        return function(zq, zp, labels) if teacher else function(zq, labels)

    return of_logits


for name in ("target_kl", "non_target_kl", "decoupled_kl"):
    DIVERGENCES[name] = (with_label(getattr(losses, name)), partial(getattr(oracle, name), label=LABEL))
DIVERGENCES["cross_entropy"] = (
    with_label(losses.cross_entropy, teacher=False),
    partial(oracle.cross_entropy, label=LABEL),
)
for label in (LABEL, -1):
    given = with_label(losses.hard_cross_entropy, label=label)
    DIVERGENCES[f"hard_cross_entropy-{label}"] = (given, partial(oracle.hard_cross_entropy, label=label))

everyone = pytest.mark.parametrize("name", DIVERGENCES)


def logits_pair(positions, vocabulary, spread, seed=0, correlation=0.9):
    """Student and teacher logits in [-spread/2, spread/2] and alike, as after some training."""
    rng = np.random.default_rng(seed)
    teacher = rng.uniform(-spread / 2, spread / 2, (positions, vocabulary))
    other = rng.uniform(-spread / 2, spread / 2, (positions, vocabulary))
    student = correlation * teacher + (1 - correlation) * other
    return student.astype(np.float32), teacher.astype(np.float32)


def compare(name, student, teacher, *, value_tolerance, gradient_tolerance):
    function, expected = DIVERGENCES[name]
    total = jax.jit(jax.value_and_grad(lambda q, p: (jnp.sum(values := function(q, p)), values), has_aux=True))
    (_, values), gradients = total(student, teacher)
    assert values.dtype == jnp.float32 and gradients.dtype == student.dtype
    for row in range(len(student)):
        value, gradient = expected(np.asarray(student[row], np.float64), np.asarray(teacher[row], np.float64))
        np.testing.assert_allclose(values[row], value, rtol=value_tolerance, atol=1e-6)
        scale = np.abs(gradient).max()
        difference = np.abs(np.asarray(gradients[row], np.float64) - gradient)
        # A bucket with nearly all of the student's mass has a slope of nearly the value, from which the value is taken.
        rounding = 1e-7 * value if name.startswith("teacher_top_k_reverse_kl") else 0.0
        assert difference.max() <= gradient_tolerance * scale + rounding + 1e-9, (difference.max(), scale)
    return np.asarray(gradients)


@everyone
def test_large_vocabulary_and_wide_logits(name):
    compare(name, *logits_pair(2, 151_936, 30.0), value_tolerance=1e-5, gradient_tolerance=1e-4)


@everyone
def test_unrelated_distributions(name):
    student, teacher = logits_pair(7, 1_009, 30.0, seed=1, correlation=0.0)
    compare(name, student, teacher, value_tolerance=1e-5, gradient_tolerance=2e-5)


@everyone
def test_bfloat16_logits_are_computed_in_float32(name):
    student, teacher = (jnp.asarray(z, jnp.bfloat16) for z in logits_pair(2, 151_936, 30.0, seed=2))
    # The gradient is rounded to the logits' own dtype, at most 2^-8 of its size.
    compare(name, student, teacher, value_tolerance=1e-5, gradient_tolerance=2.0**-8)


@everyone
def test_masked_vocabulary_tail(name):
    student, teacher = logits_pair(5, 131, 20.0, seed=3)
    student[:, 101:] = teacher[:, 101:] = -np.inf
    gradients = compare(name, student, teacher, value_tolerance=1e-5, gradient_tolerance=2e-5)
    assert np.all(gradients[:, 101:] == 0)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_token_that_only_one_side_excludes(alpha):
    both, one = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 1.0, -jnp.inf])
    infinite = alpha == 0.0
    cases = [(losses.skew_kl, one, both), (losses.skew_reverse_kl, both, one)]
    for function, student, teacher in cases:
        value, gradient = jax.value_and_grad(partial(function, alpha=alpha))(student, teacher)
        assert np.isinf(value) == infinite and np.all(np.isfinite(gradient))
        swapped = function(teacher, student, alpha=alpha)
        assert np.isfinite(swapped) and swapped > 0


def test_the_teachers_top_k_with_one_bucket_more():
    student, teacher = logits_pair(6, 29, 12.0, seed=8)
    # From all tokens on it is the whole divergence; below, with the bucket, never more.
    for whole, top in (
        (losses.forward_kl, losses.teacher_top_k_kl),
        (losses.reverse_kl, losses.teacher_top_k_reverse_kl),
    ):
        np.testing.assert_allclose(top(student, teacher, k=29), whole(student, teacher), rtol=1e-5)
        rising = np.stack([top(student, teacher, k=k) for k in (1, 3, 9, 29)])
        assert np.all(np.diff(rising, axis=0) >= -1e-6) and np.all(rising[0] < rising[3])
    # Tied with the k-th: all in; excluded by the teacher: no mass, no gradient; a tail that the student excludes.
    tied = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.2]))
    four = student[0, :4]
    np.testing.assert_allclose(losses.teacher_top_k_kl(four, tied, k=2), losses.forward_kl(four, tied), rtol=1e-5)
    alone = jnp.array([0.0, 0.0, -jnp.inf, -jnp.inf])
    value, gradient = jax.value_and_grad(partial(losses.teacher_top_k_kl, k=1))(alone, alone.at[0].set(2.0))
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and np.all(gradient[2:] == 0)
    unmet = jnp.array([3.0, 2.0, 1.0, 0.0])
    value, gradient = jax.value_and_grad(partial(losses.teacher_top_k_kl, k=2))(alone, unmet)
    assert np.isinf(value) and np.all(np.isfinite(gradient))
    assert np.isfinite(losses.teacher_top_k_kl(alone, unmet, k=2, tail=False))
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        losses.teacher_top_k_kl(student, teacher, k=0)


def test_hand_computed_values():
    student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
    log = np.log
    np.testing.assert_allclose(losses.forward_kl(student, teacher), 0.75 * log(1.5) + 0.25 * log(0.5), rtol=1e-6)
    np.testing.assert_allclose(losses.reverse_kl(student, teacher), 0.5 * log(2 / 3) + 0.5 * log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.total_variation(student, teacher), 0.25, rtol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(student, jnp.array(0)), log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.entropy(teacher), -0.75 * log(0.75) - 0.25 * log(0.25), rtol=1e-6)


@everyone
def test_plain_jit_and_vmap_agree_and_the_teacher_has_no_gradient(name):
    function = DIVERGENCES[name][0]
    student, teacher = (z.reshape(2, 3, 17) for z in logits_pair(6, 17, 8.0, seed=4))

    def value_and_gradients(q, p):
        return jax.value_and_grad(lambda *z: jnp.sum(function(*z)), argnums=(0, 1))(q, p)

    value, (gradient, to_teacher) = value_and_gradients(student, teacher)
    jit_value, (jit_gradient, _) = jax.jit(value_and_gradients)(student, teacher)
    vmap_values, (vmap_gradient, _) = jax.jit(jax.vmap(value_and_gradients))(student, teacher)
    np.testing.assert_allclose(value, jit_value, rtol=1e-5)
    np.testing.assert_allclose(value, vmap_values.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, jit_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, vmap_gradient, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(to_teacher) == 0)


def test_entropy_matches_the_oracle_and_survives_masked_tokens():
    logits = logits_pair(4, 131, 20.0, seed=6)[0]
    logits[:, 100:] = -np.inf
    np.testing.assert_allclose(losses.entropy(logits), [oracle.entropy(row) for row in logits], rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda z: jnp.sum(losses.entropy(z)))(logits)))


def test_skew_may_differ_between_positions():
    student, teacher = (z.reshape(2, 3, 17) for z in logits_pair(6, 17, 8.0, seed=7))
    alphas = jnp.array([0.05, 0.4])
    for function in (losses.skew_kl, losses.skew_reverse_kl):
        together = function(student, teacher, alpha=alphas[:, None, None])
        apart = jnp.stack([function(student[i], teacher[i], alpha=float(alphas[i])) for i in range(2)])
        np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_labels_outside_the_vocabulary_stay_finite():
    student, teacher = logits_pair(2, 17, 8.0, seed=8)
    labels = jnp.array([-100, 400])
    for function in (losses.target_kl, losses.non_target_kl, losses.decoupled_kl):
        value, gradient = jax.value_and_grad(lambda q, f=function: jnp.sum(f(q, teacher, labels)))(student)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(losses.cross_entropy(student, labels)))
