"""Another divergence for rejected tokens: against loops in float64, by chunks, fused, on devices, in two streams."""

from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import divergences, verifiers
from oracle import objective as oracle

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError

B, T, D, V = 4, 5, 6, 17
FLOOR = 1.5  # a coefficient: another divergence has another scale
TROPD = distill.Objective(
    losses.reverse_kl, selection.spec_label, floor=FLOOR, rejected=partial(losses.teacher_top_k_kl, k=4)
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hidden, head, teacher_hidden, teacher_head = (
        rng.normal(0, 1.2, shape) for shape in ((B, T, D), (D, V), (B, T, D), (D, V))
    )
    mask = np.arange(T) < np.array([5, 3, 0, 4])[:, None]
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    return hidden, head, teacher_hidden, teacher_head, mask, rng.random((B, T)).astype(np.float32), labels


def loops(batch, draws, normalizer):
    """Sums, and the gradient of the loss's numerator to the student's logits, one position at a time in NumPy."""
    hidden, head, teacher_hidden, teacher_head, mask, _, labels = batch
    student, teacher = hidden @ head, teacher_hidden @ teacher_head
    places = [(b, t) for b in range(B) for t in range(T)]
    shared, other, acceptance = np.zeros((3, B, T))
    gradient = np.zeros((B, T, V))
    for b, t in places:
        pair = student[b, t], teacher[b, t]
        shared[b, t], g = divergences.reverse_kl(*pair)
        other[b, t], r = divergences.teacher_top_k(*pair, k=4)
        acceptance[b, t] = verifiers.spec_label(*pair, labels[b, t])
        a = acceptance[b, t] if draws is None else float(draws[b, t] < acceptance[b, t])
        per = max(mask[b].sum(), 1) if normalizer == "sequence" else 1
        gradient[b, t] = mask[b, t] * (a * g + FLOOR * (1 - a) * r) / per
    return oracle.objective(shared, acceptance, mask, draws, FLOOR, normalizer, rejected=other), gradient


@pytest.mark.parametrize(("normalizer", "drawn"), [("sequence", True), ("token", False), ("weight", True)])
def test_loops_over_tokens_in_float64(batch, normalizer, drawn):
    hidden, head, teacher_hidden, teacher_head, mask, uniforms, labels = batch
    draws = uniforms if drawn else None
    wanted, wanted_gradient = loops(batch, draws, normalizer)
    assert 0 < wanted["accepted"] < wanted["tokens"]
    objective = replace(TROPD, normalizer=normalizer)

    def whole(head, **options):
        sums = objective(hidden @ head, teacher_hidden @ teacher_head, mask, draws, labels, **options)
        return sums.loss, sums

    def fused(head):
        heads, tokens = (distill.Head(head), distill.Head(teacher_head)), distill.Tokens(mask, draws, labels)
        sums = distill.fused_head(objective, hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=3)
        return sums.loss, sums

    wanted_gradient = np.einsum("BTD,BTV->DV", hidden, wanted_gradient)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        hidden, head, teacher_hidden, teacher_head = (jnp.asarray(a, jnp.float64) for a in batch[:4])
        for loss in (whole, partial(whole, chunk_size=2), fused):
            (_, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(head)
            for name, value in asdict(sums).items():
                np.testing.assert_allclose(value, wanted[name], rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-6 * np.abs(wanted_gradient).max())


def in_float32(batch):
    return [jnp.asarray(a, jnp.float32) for a in batch[:4]], [jnp.asarray(a) for a in batch[4:]]


def test_the_same_divergence_by_name_changes_nothing(batch):
    (hidden, head, teacher_hidden, teacher_head), (mask, uniforms, labels) = in_float32(batch)
    alike = distill.Objective(losses.skew_kl, partial(selection.spec_k, k=2), floor=0.3, label_share=0.2)
    for draws in (uniforms, None):
        arguments = hidden @ head, teacher_hidden @ teacher_head, mask, draws, labels
        one, other = (o(*arguments) for o in (alike, replace(alike, rejected=losses.skew_kl)))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), other, one)


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 1, 8)])
def test_eight_devices_and_a_sharded_vocabulary_equal_one(batch, axes):
    (hidden, head, teacher_hidden, teacher_head), (mask, uniforms, labels) = in_float32(batch)
    head, teacher_head = (jnp.concatenate([a, a[:, :7] - 1.0], axis=1) for a in (head, teacher_head))  # 24 columns

    def loss(hidden, head, *rest):
        tokens = distill.Tokens(*rest[2:])
        heads = distill.Head(head), distill.Head(rest[1])
        return distill.fused_head(TROPD, hidden, heads[0], rest[0], heads[1], tokens, chunk_size=2).loss

    arguments = hidden, head, teacher_hidden, teacher_head, mask, uniforms, labels
    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    mesh = jax.make_mesh(axes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, columns = PartitionSpec(("data", "fsdp")), PartitionSpec(None, "tensor")
    specs = rows, columns, rows, columns, rows, rows, rows
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arguments, specs, strict=True)]
        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(*placed)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_each_of_two_streams_has_its_own(batch):
    (hidden, head, teacher_hidden, teacher_head), (mask, uniforms, labels) = in_float32(batch)
    tokens = distill.Tokens(mask, uniforms, labels)
    pair = distill.TwoStreamObjective(distill.Objective(losses.skew_kl, floor=1.0), TROPD)
    hidden_stream = distill.HiddenStream(hidden, teacher_hidden, tokens)
    stream = distill.Stream(hidden @ head, teacher_hidden @ teacher_head, tokens)
    whole = pair(stream, stream)
    fused = distill.fused_two_stream(pair, *[hidden_stream] * 2, distill.Head(head), distill.Head(teacher_head))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), fused, whole)
    alone = TROPD(stream.student_logits, stream.teacher_logits, mask, uniforms, labels)
    np.testing.assert_allclose(whole.student_responses.loss, alone.loss, rtol=1e-6)


def test_what_is_infinite_on_the_other_side_leaves_no_nan(batch):
    """Reverse KL is infinite where the teacher excludes a token: on rejected tokens it does not count."""
    (hidden, head, teacher_hidden, teacher_head), (mask, _, _) = in_float32(batch)
    teacher = (teacher_hidden @ teacher_head).at[:, 1, 3].set(-jnp.inf)
    acceptance = jnp.ones((B, T)).at[:, 1].set(0.0)
    objective = distill.Objective(losses.reverse_kl, rejected=losses.forward_kl, floor=1.0)
    loss, gradient = jax.value_and_grad(lambda z: objective(z, teacher, mask, acceptance=acceptance).loss)(
        hidden @ head
    )
    assert jnp.isfinite(loss) and bool(jnp.all(jnp.isfinite(gradient)))
    # A verdict of NaN shows.
    assert jnp.isnan(objective(hidden @ head, teacher, mask, acceptance=acceptance.at[0, 0].set(jnp.nan)).loss)


def test_rejected_tokens_without_a_floor_are_skipped(batch):
    (hidden, head, teacher_hidden, teacher_head), (mask, uniforms, labels) = in_float32(batch)
    objective, tokens = replace(TROPD, floor=0.0), distill.Tokens(mask, uniforms, labels)

    def loss(head, **options):
        heads = distill.Head(head), distill.Head(teacher_head)
        return distill.fused_head(objective, hidden, heads[0], teacher_hidden, heads[1], tokens, **options).loss

    one, other = (jax.jit(jax.grad(partial(loss, skip_rejected=skip)))(head) for skip in (False, True))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_what_it_may_be():
    with pytest.raises(TypeError, match="rejected must be a function of logits, got 'forward_kl'"):
        distill.Objective(rejected="forward_kl")
    with pytest.raises(InputError, match="floor must be finite and at least 0, got -1"):
        distill.Objective(rejected=losses.forward_kl, floor=-1.0)
    with pytest.raises(InputError, match=r"floor must be in \[0.0, 1.0\], got 1.5"):
        distill.Objective(floor=1.5)
    with pytest.raises(InputError, match="the divergence of rejected tokens target_kl needs labels"):
        distill.Objective(rejected=losses.target_kl)(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)), np.ones((1, 2), bool))
    make = partial(distill.Objective, floor=1.0)
    sums = [make(rejected=losses.sum_of(losses.reverse_kl, partial(losses.skew_kl, alpha=0.2))) for _ in range(2)]
    assert sums[0] == sums[1] != make(rejected=losses.reverse_kl) and hash(sums[0]) == hash(sums[1])
