"""Mistakes are refused when the function is traced, with what was expected and what was found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import selection
from selecttkd_jax._errors import InputError

z = jnp.zeros((2, 3, 7))
labels = jnp.zeros((2, 3), jnp.int32)
scores, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)


def trace(function, *arguments):
    return jax.eval_shape(function, *arguments)


@pytest.mark.parametrize("verifier", [selection.greedy_top_k, selection.spec_k])
def test_k(verifier):
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
            trace(partial(verifier, k=k), z, z)
    for k in (2.0, True, "5"):
        with pytest.raises(TypeError, match="k must be an integer, got"):
            trace(partial(verifier, k=k), z, z)


def test_k_beyond_the_vocabulary():
    with pytest.raises(InputError, match="k must be at most the vocabulary size 7, got 8"):
        trace(partial(selection.greedy_top_k, k=8), z, z)
    with pytest.raises(InputError, match="k must be at most the vocabulary size 7, got 8"):
        trace(partial(selection.label_in_top_k, k=8), z, z, labels)


@pytest.mark.parametrize(
    "verifier",
    [
        selection.greedy_top_k,
        selection.spec_k,
        selection.hellinger,
        selection.hellinger_gate,
        partial(selection.entropy_gate, threshold=1.0),
        partial(selection.label_in_top_k, labels=labels),
        partial(selection.spec_k_by_sampling, key=jax.random.key(0)),
    ],
)
def test_logits(verifier):
    with pytest.raises(InputError, match=r"same shape, got \(2, 3, 7\) and \(2, 3, 8\)"):
        trace(verifier, z, jnp.zeros((2, 3, 8)))
    with pytest.raises(TypeError, match="teacher_logits must be floating point, got int32"):
        trace(verifier, z, z.astype(jnp.int32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.random_gate(z, z, rate=1.5), r"rate must be in \[0.0, 1.0\], got 1.5"),
        (lambda: selection.hellinger_gate(z, z, tau=-0.1), r"tau must be in \[0.0, 1.0\], got -0.1"),
        (lambda: selection.entropy_gate(z, z, threshold=-1.0), "threshold must be at least 0.0, got -1.0"),
        (lambda: selection.entropy_gate(z, z, threshold=1.0, source="techer"), "did you mean 'teacher'"),
        (lambda: selection.token_weights(scores, floor=1.1), r"floor must be in \[0.0, 1.0\], got 1.1"),
        (lambda: selection.token_weights(scores, jnp.zeros(3)), "uniforms and acceptance must have the same shape"),
        (lambda: selection.top_fraction(scores, mask, 1.5), r"fraction must be in \[0.0, 1.0\], got 1.5"),
        (lambda: selection.top_fraction(scores, mask, 0.5, counting="exact"), "counting must be one of"),
        (lambda: selection.top_fraction(scores, mask[:1], 0.5), "scores and mask must have the same shape"),
        (lambda: selection.acceptance_rate(scores, mask[:1]), "accepted and mask must have the same shape"),
        (lambda: selection.acceptance_rate_by_position(scores, mask, bins=0), "bins must be at least 1"),
        (
            lambda: selection.acceptance_rate_by_position(scores, mask, bins=True),
            "bins must be a whole number, got True",
        ),
        (lambda: selection.acceptance_rate_by_position(scores, mask, bins=2.0), "bins must be a whole number, got 2.0"),
        (lambda: selection.label_in_top_k(z, z, labels[:1]), "labels must have the shape of the positions"),
    ],
)
def test_options(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (np.full((2, 3), 0.5), TypeError, "mask must be boolean or integer, got float"),
        (np.array([[1, -100, 0], [1, 1, 1]]), ValueError, "mask must be boolean or hold only 0 and 1"),
        (np.array([[1, 2, 0], [1, 1, 1]]), ValueError, "mask must be boolean or hold only 0 and 1"),
    ],
)
def test_masks_that_are_weights_or_labels_are_refused(mask, kind, message):
    ones = jnp.ones((2, 3))
    for function in (selection.acceptance_rate, selection.acceptance_rate_by_sequence, selection.median_split):
        with pytest.raises(kind, match=message):
            function(ones, mask)
    with pytest.raises(kind, match=message):
        selection.top_fraction(ones, mask, 0.5)
