"""Schedules: their numbers, and an objective whose numbers come with the tokens."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError

B, T, D, V = 3, 4, 5, 13
OWN = distill.Objective(losses.skew_kl, partial(selection.spec_k, k=5), floor=0.5, temperature=1.0)
MOVED = distill.Objective(losses.skew_kl, partial(selection.spec_k, k=2), floor=0.1, temperature=2.0)
NUMBERS = {"floor": jnp.float32(0.1), "temperature": jnp.float32(2.0), "k": jnp.int32(2)}


def test_from_the_first_step_to_the_last():
    for kind, wanted in (
        ("constant", [0.2] * 5),
        ("linear", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("cosine", [1.0 - 0.8 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]),
    ):
        schedule = distill.Schedule(kind, 0.2, 1.0, 5)
        np.testing.assert_allclose([schedule(step) for step in range(5)], wanted, rtol=1e-6)
        assert schedule(7) == schedule(4)
    assert distill.Schedule("linear", 3.0, 9.0, 1)(0) == 3.0
    moving = distill.Schedules(k=distill.Schedule("linear", 5, 1, 9))
    found = [moving.at(step) for step in range(9)]
    assert [int(one["k"]) for one in found] == [5, 5, 4, 4, 3, 3, 2, 2, 1] and set(found[0]) == {"k"}
    assert distill.Schedules().at(3) == {}
    with pytest.raises(InputError, match="schedule must be one of constant, linear, cosine; got 'cosin'"):
        distill.Schedule("cosin", 0.0, 1.0, 5)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    hidden, teacher_hidden = (jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32) for _ in range(2))
    head, teacher_head = (jnp.asarray(rng.normal(size=(D, V)), jnp.float32) for _ in range(2))
    mask = np.arange(T) < np.array([4, 2, 3])[:, None]
    return hidden, head, teacher_hidden, teacher_head, mask, jnp.asarray(rng.random((B, T)), jnp.float32)


def test_numbers_that_come_with_the_tokens_are_the_objectives(batch):
    hidden, head, teacher_hidden, teacher_head, mask, uniforms = batch
    teacher = teacher_hidden @ teacher_head

    def whole(objective, head, numbers, **options):
        sums = objective(hidden @ head, teacher, mask, uniforms, **numbers, **options)
        return sums.loss, sums

    def fused(objective, head, numbers):
        tokens = distill.Tokens(mask, uniforms, **numbers)
        heads = distill.Head(head), distill.Head(teacher_head)
        sums = distill.fused_head(objective, hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=3)
        return sums.loss, sums

    wanted = jax.jit(jax.value_and_grad(partial(whole, MOVED), has_aux=True))(head, {})
    for loss in (whole, partial(whole, chunk_size=2), fused):
        found = jax.jit(jax.value_and_grad(partial(loss, OWN), has_aux=True))(head, NUMBERS)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)
    stream = distill.Stream(hidden @ head, teacher, distill.Tokens(mask, uniforms, **NUMBERS))
    sums = distill.TwoStreamObjective(OWN, OWN)(stream, stream)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), sums.teacher_responses, wanted[0][1])
    # One for each position, too.
    by_token = {name: jnp.broadcast_to(value, (B, T)) for name, value in NUMBERS.items()}
    np.testing.assert_allclose(whole(OWN, head, by_token)[0], wanted[0][0], rtol=1e-5)


def test_what_does_not_fit_is_named(batch):
    hidden, head, teacher_hidden, teacher_head, mask, uniforms = batch
    logits = hidden @ head
    with pytest.raises(InputError, match=r"floor must be a number or have the shape of the mask, \(3, 4\), got \(3,\)"):
        OWN(logits, logits, mask, floor=jnp.ones(3))
    with pytest.raises(InputError, match="the verifier accept_all has no option 'k'"):
        replace(OWN, verifier=selection.accept_all)(logits, logits, mask, k=jnp.int32(2))
    heads, tokens = distill.Head(head), distill.Tokens(mask, floor=0.0)
    with pytest.raises(InputError, match="skip_rejected needs a floor of 0, and the tokens have one of their own"):
        distill.fused_head(replace(OWN, floor=0.0), hidden, heads, hidden, heads, tokens, skip_rejected=True)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fused"])
@pytest.mark.parametrize(
    ("numbers", "rejected", "message"),
    [
        ({"floor": 1.5}, None, r"floor must be in \[0.0, 1.0\], got 1.5"),
        ({"floor": np.full((B, T), -0.5)}, None, r"floor must be in \[0.0, 1.0\]"),
        ({"floor": float("nan")}, None, r"floor must be in \[0.0, 1.0\], got nan"),
        ({"floor": -1.0}, losses.forward_kl, "floor must be finite and at least 0, got -1"),
        ({"temperature": 0.0}, None, "temperature must be above 0 and finite, got 0"),
        ({"temperature": np.full((B, T), np.inf)}, None, "temperature must be above 0 and finite"),
    ],
)
def test_numbers_out_of_range_are_refused_where_they_can_be_seen(batch, numbers, rejected, message, whole):
    """As those of an objective are; a coefficient may exceed 1."""
    hidden, head, teacher_hidden, teacher_head, mask, _ = batch
    objective, heads = replace(OWN, rejected=rejected), (distill.Head(head), distill.Head(teacher_head))

    def call(**numbers):
        if whole:
            return objective(hidden @ head, teacher_hidden @ teacher_head, mask, **numbers)
        return distill.fused_head(
            objective, hidden, heads[0], teacher_hidden, heads[1], distill.Tokens(mask, **numbers), chunk_size=3
        )

    with pytest.raises(InputError, match=message):
        call(**numbers)
    if rejected is not None:
        jax.eval_shape(lambda: call(floor=jnp.float32(1.5)).loss)
