"""Acceptance rates and overlaps, by hand and as sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax import selection

accepted = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
mask = jnp.array([[True, True, True, False], [False, True, False, False], [False, False, False, False]])
close = partial(np.testing.assert_allclose, rtol=1e-6)


def test_pooled_and_by_sequence():
    close(selection.acceptance_rate(accepted, mask).value, 2 / 4)
    close(selection.acceptance_rate_by_sequence(accepted, mask).value, (2 / 3 + 0) / 2)


def test_by_position():
    rate = selection.acceptance_rate_by_position(accepted, mask, bins=3)
    np.testing.assert_array_equal(rate.denominator, [2, 1, 1])
    close(rate.value, [1 / 2, 0, 1])
    coarse = selection.acceptance_rate_by_position(accepted, mask, bins=2, bin_size=2)
    close(coarse.value, [1 / 3, 1])
    last_takes_the_rest = selection.acceptance_rate_by_position(accepted, mask, bins=2)
    np.testing.assert_array_equal(last_takes_the_rest.denominator, [2, 2])


def test_on_stop_tokens():
    labels = jnp.array([[5, 6, 2, 0], [9, 3, 0, 0], [0, 0, 0, 0]])
    stops = selection.is_stop_token(labels, (2, 3))
    np.testing.assert_array_equal(np.argwhere(stops), [[0, 2], [1, 1]])
    close(selection.acceptance_rate(accepted, mask & stops).value, 1 / 2)


def test_rejected_weight_share():
    share = selection.rejected_weight_share(accepted, mask, floor=0.1)
    close(share.value, 0.2 / (2 + 0.2))
    close(selection.rejected_weight_share(accepted, mask, floor=0.0).value, 0)
    one_of_four = selection.rejected_weight_share(jnp.array([[0.0, 1.0, 1.0, 1.0]]), jnp.ones((1, 4), bool), floor=0.1)
    close(one_of_four.value, 0.1 / (3 + 0.1))


def test_overlap():
    other = jnp.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    close(selection.overlap(accepted, other, mask).value, 1 / 3)
    close(selection.overlap(accepted, accepted, mask).value, 1)
    close(selection.overlap(0.5 * accepted, accepted, mask).value, 0.5)


def test_rates_add_up_and_empty_ones_are_zero():
    halves = [selection.acceptance_rate_by_sequence(accepted[i : i + 1], mask[i : i + 1]) for i in range(3)]
    total = halves[0] + halves[1] + halves[2]
    close(total.value, selection.acceptance_rate_by_sequence(accepted, mask).value)
    assert selection.acceptance_rate(accepted, jnp.zeros_like(mask)).value == 0


def test_shadows():
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(rng.normal(0, 2, (2, 3, 4, 11)), jnp.float32)
    uniforms = jnp.asarray(rng.random((3, 4)), jnp.float32)
    labels = jnp.zeros((3, 4), jnp.int32)
    active = partial(selection.greedy_top_k, k=3)
    shadows = {
        "same": active,
        "opposite": selection.invert(active),
        "spec": partial(selection.spec_k, k=3),
        "label": partial(selection.label_in_top_k, k=3),
    }
    report = jax.jit(partial(selection.shadow_overlaps, shadows))(
        active(student, teacher), student, teacher, mask, uniforms, labels
    )
    close(report["same"]["overlap"].value, 1)
    close(report["opposite"]["overlap"].value, 0)
    close(report["same"]["accepted"].value + report["opposite"]["accepted"].value, 1)
    drawn = (uniforms < selection.spec_k(student, teacher, k=3)).astype(jnp.float32)
    close(report["spec"]["accepted"].value, selection.acceptance_rate(drawn, mask).value)
    rejections = selection.overlap(1 - active(student, teacher), 1 - drawn, mask)
    close(report["spec"]["rejected_overlap"].value, rejections.value)
