"""Identities, bounds and limits that hold for any two distributions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selecttkd_jax import losses

V = 11
rows = hnp.arrays(np.float32, V, elements=st.floats(-12, 12, width=32))
quick = settings(max_examples=60, deadline=None, derandomize=True)

f = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": partial(losses.skew_kl, alpha=0.1),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=0.1),
    "jensen_shannon": losses.jensen_shannon,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "adaptive_kl": losses.adaptive_kl,
}


@jax.jit
def everything(zq, zp):
    """All that the identities below compare, compiled once."""
    label = jnp.argmin(zp)
    return {
        **{name: function(zq, zp) for name, function in f.items()},
        "at equal": {name: function(zp + 1.0, zp) for name, function in f.items()},
        "swapped jsd": losses.jensen_shannon(zp, zq),
        "jsd 0.3": losses.jensen_shannon(zq, zp, beta=0.3),
        "swapped jsd 0.7": losses.jensen_shannon(zp, zq, beta=0.7),
        "swapped forward": losses.forward_kl(zp, zq),
        "skew 0": losses.skew_kl(zq, zp, alpha=0.0),
        "skew reverse 0": losses.skew_reverse_kl(zq, zp, alpha=0.0),
        "overlap": jnp.sum(jnp.minimum(jax.nn.softmax(zq), jax.nn.softmax(zp))),
        "target": losses.target_kl(zq, zp, label),
        "non-target": losses.non_target_kl(zq, zp, label),
        "unlikely": 1 - jax.nn.softmax(zp)[label],
        "soft": losses.soft_cross_entropy(zq, zp),
        "entropy": losses.entropy(zp),
        "shifted": {name: function(zq - 3.0, zp + 5.0) for name, function in f.items()},
        "log-probabilities": {
            name: function(jax.nn.log_softmax(zq), jax.nn.log_softmax(zp)) for name, function in f.items()
        },
    }


@quick
@given(rows, rows)
def test_identities(zq, zp):
    d = jax.device_get(everything(zq, zp))
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=3e-6)
    for name in f:
        assert d[name] >= 0
        # Square roots turn rounding of 1e-12 into 1e-6.
        assert d["at equal"][name] <= (1e-5 if name == "hellinger" else 1e-6)
        close(d["shifted"][name], d[name])
        close(d["log-probabilities"][name], d[name])
    close(d["jensen_shannon"], d["swapped jsd"])
    close(d["jsd 0.3"], d["swapped jsd 0.7"])
    close(d["reverse_kl"], d["swapped forward"])
    close(d["skew 0"], d["forward_kl"])
    close(d["skew reverse 0"], d["reverse_kl"])
    close(1 - d["total_variation"], d["overlap"])
    close(d["target"] + d["unlikely"] * d["non-target"], d["forward_kl"])
    close(d["soft"], d["forward_kl"] + d["entropy"])


@quick
@given(rows, rows)
def test_bounds(zq, zp):
    d = jax.device_get(everything(zq, zp))
    slack = 1e-5
    assert d["total_variation"] <= np.sqrt(d["forward_kl"] / 2) + slack  # Pinsker
    assert d["hellinger"] ** 2 - slack <= d["total_variation"] <= np.sqrt(2) * d["hellinger"] + slack
    assert d["jensen_shannon"] <= np.log(2) + slack
    assert d["skew_kl"] <= np.log(10) + slack and d["skew_reverse_kl"] <= np.log(10) + slack
    assert d["skew_kl"] <= 0.9 * d["forward_kl"] + slack  # convexity in the second argument
    low, high = sorted([d["forward_kl"], d["reverse_kl"]])
    assert low - slack <= d["adaptive_kl"] <= high + slack


@quick
@given(rows, st.integers(0, V - 1))
def test_different_distributions_are_told_apart(zp, token):
    likely = zp.argmax() if np.random.default_rng(token).random() < 0.5 else token
    zq = zp.copy()
    zq[likely] = zp.max() + 1.0 if likely != zp.argmax() else zp.max() - 1.0
    d = jax.device_get(everything(zq, zp))
    for name in f:
        assert d[name] > 1e-6, name


def test_jensen_shannon_tends_to_the_kl_divergences():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        zq, zp = jnp.asarray(rng.normal(0, 2, V)), jnp.asarray(rng.normal(0, 2, V))
        small = 1e-7
        forward = losses.jensen_shannon(zq, zp, beta=small) / small
        reverse = losses.jensen_shannon(zq, zp, beta=1 - small) / small
        np.testing.assert_allclose(forward, losses.forward_kl(zq, zp), rtol=1e-4)
        np.testing.assert_allclose(reverse, losses.reverse_kl(zq, zp), rtol=1e-4)


def test_equal_logits_give_zero_at_any_width_and_dtype():
    rng = np.random.default_rng(1)
    for dtype in (jnp.float32, jnp.bfloat16):
        z = jnp.asarray(rng.normal(0, 8, (2, 50_021)), dtype)
        for function in (losses.forward_kl, losses.reverse_kl, losses.total_variation, losses.hellinger):
            value, gradient = jax.jit(jax.value_and_grad(lambda q, p, f=function: jnp.sum(f(q, p))))(z, z)
            assert value < 1e-6 and np.abs(np.asarray(gradient, np.float32)).max() < 1e-7


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_scaled_forward_kl_tends_to_half_the_logit_variance(temperature):
    # T^2 KL(p_T || q_T) -> Var(z_p - z_q) / 2: the limit in which distillation matches logits.
    rng = np.random.default_rng(2)
    zq, zp = rng.normal(0, 2, V), rng.normal(0, 2, V)
    with jax.enable_x64(True):
        scaled = temperature**2 * losses.forward_kl(jnp.asarray(zq) / temperature, jnp.asarray(zp) / temperature)
    np.testing.assert_allclose(scaled, np.var(zp - zq) / 2, rtol=1e-2)
