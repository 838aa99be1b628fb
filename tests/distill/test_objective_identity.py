"""Objectives are values: equal ones compile once, and wrong ones are refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError


def make(**changes):
    options = {
        "divergence": partial(losses.skew_kl, alpha=0.1),
        "verifier": partial(selection.greedy_top_k, k=5),
        "floor": 0.01,
    }
    return distill.Objective(**{**options, **changes})


z = jnp.zeros((2, 3, 7))
mask = jnp.ones((2, 3), bool)


def test_equal_objectives_are_equal_and_compile_once():
    assert make() == make() and hash(make()) == hash(make())
    inverted = [make(verifier=selection.invert(partial(selection.greedy_top_k, k=5))) for _ in range(2)]
    assert inverted[0] == inverted[1] and hash(inverted[0]) == hash(inverted[1])
    run = jax.jit(lambda objective, *arguments: objective(*arguments), static_argnums=0)
    for _ in range(3):
        run(make(), z, z, mask)
    assert run._cache_size() == 1
    run(make(floor=0.02), z, z, mask)
    assert run._cache_size() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"divergence": partial(losses.skew_kl, alpha=0.2)},
        {"divergence": partial(losses.skew_reverse_kl, alpha=0.1)},
        {"divergence": losses.skew_kl},
        {"verifier": partial(selection.greedy_top_k, k=3)},
        {"floor": 0.02},
        {"temperature": 2.0},
        {"normalizer": "token"},
        {"label_share": 0.5},
    ],
)
def test_different_objectives_differ(changes):
    assert make(**changes) != make()
    assert make() != "an objective"


def test_options_that_are_equal_to_python_but_of_other_types_differ():
    """`greedy_top_k` takes 1 and refuses True: what was compiled for one must not answer for the other."""
    one, true, float_ = (make(verifier=partial(selection.greedy_top_k, k=k)) for k in (1, True, 1.0))
    assert one != true and one != float_ and true != float_


def test_objectives_are_frozen():
    with pytest.raises(AttributeError):
        make().floor = 0.5
    assert replace(make(), floor=0.5).floor == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": -0.1}, r"floor must be in \[0.0, 1.0\], got -0.1"),
        ({"floor": 1.1}, r"floor must be in \[0.0, 1.0\], got 1.1"),
        ({"label_share": 2.0}, r"label_share must be in \[0.0, 1.0\], got 2.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"normalizer": "sequnce"}, "normalizer must be one of sequence, token, weight; got 'sequnce'.*'sequence'"),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_functions_are_functions_and_their_options_hashable():
    with pytest.raises(TypeError, match="divergence must be a function of logits, got 'forward_kl'"):
        make(divergence="forward_kl")
    with pytest.raises(TypeError, match="must be hashable, got ArrayImpl; pass arrays"):
        hash(make(divergence=partial(losses.skew_kl, alpha=jnp.array([0.1]))))


def trace(objective, *arguments, **options):
    return jax.eval_shape(lambda *a: objective(*a, **options), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((z, jnp.zeros((2, 3, 8)), mask), r"same shape, got \(2, 3, 7\) and \(2, 3, 8\)"),
        ((z[0], z[0], mask), r"student_logits must have 3 axes, got shape \(3, 7\)"),
        ((z, z, mask[:, :2]), r"mask must have the shape of the positions, \(2, 3\), got \(2, 2\)"),
        ((z, z, mask[0]), r"mask must have 2 axes, got shape \(3,\)"),
        ((z, z, mask, jnp.zeros((2, 2))), r"uniforms and mask and acceptance must have the same shape"),
    ],
)
def test_shapes(arguments, message):
    with pytest.raises(InputError, match=message):
        trace(make(), *arguments)


def test_dtypes():
    with pytest.raises(TypeError, match="student_logits must be floating point, got int32"):
        trace(make(), z.astype(jnp.int32), z, mask)
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        trace(make(divergence=losses.cross_entropy), z, z, mask, None, jnp.zeros((2, 3)))


def test_masks_are_boolean_or_0_and_1():
    student = z + jnp.arange(7.0)[None, None]
    ones, booleans = (make()(student, z, np.ones((2, 3), dtype)) for dtype in (np.int32, bool))
    assert ones.loss == booleans.loss > 0
    for wrong in (np.full((2, 3), -100), np.arange(6).reshape(2, 3)):
        with pytest.raises(InputError, match="mask must be boolean or hold only 0 and 1"):
            make()(z, z, wrong)


@pytest.mark.parametrize("run", [lambda function, mask: function(mask), lambda function, mask: jax.jit(function)(mask)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_weights_as_a_mask_are_refused_also_under_jit(run, dtype):
    with pytest.raises(TypeError, match=f"integer, got {dtype}: hand over `mask > 0` .*; weights go through `accept"):
        run(lambda mask: make()(z, z, mask), jnp.ones((2, 3), dtype))


def test_what_is_needed_and_absent_or_given_and_unused_is_named():
    with pytest.raises(InputError, match="the divergence target_kl needs labels, got none"):
        trace(make(divergence=losses.target_kl), z, z, mask)
    with pytest.raises(InputError, match="the verifier label_in_top_k needs labels, got none"):
        trace(make(verifier=selection.label_in_top_k), z, z, mask)
    with pytest.raises(InputError, match="label_share is 0.5, which needs labels"):
        trace(make(label_share=0.5), z, z, mask)
    with pytest.raises(InputError, match="the divergence forward_kl has no option 'alpha'"):
        trace(make(divergence=losses.forward_kl), z, z, mask, alpha=jnp.full(2, 0.1))
    with pytest.raises(InputError, match="one skew per sequence"):
        trace(make(), z, z, mask, alpha=jnp.full((2, 1), 0.1))
    with pytest.raises(InputError, match="acceptance must have the shape of the positions"):
        trace(make(), z, z, mask, acceptance=jnp.ones(3))
