"""The objective against loops over tokens, its sums under any split of the batch, and exact zeros elsewhere."""

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

B, T, V = 8, 5, 19
SELECTIVE = distill.Objective(
    divergence=partial(losses.skew_kl, alpha=0.1),
    verifier=partial(selection.spec_k, k=2),
    floor=0.05,
    normalizer="sequence",
)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 3, (B, T, V)).astype(np.float32)
    student = (teacher * rng.uniform(0, 1, (B, T, 1)) + rng.normal(0, 2, (B, T, V))).astype(np.float32)
    lengths = np.array([5, 3, 0, 1, 4, 2, 5, 0])  # uneven, two sequences without a valid token
    mask = np.arange(T) < lengths[:, None]
    mask[0, 0] = mask[4, 1] = False
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    return student, teacher, mask, rng.random((B, T)).astype(np.float32), labels


student, teacher, mask, uniforms, labels = make_batch()
normalizers = pytest.mark.parametrize("normalizer", distill.NORMALIZERS)


def loss_and_gradient(objective, *arguments, **options):
    def loss(z):
        sums = objective(z, *arguments, **options)
        return sums.loss / jnp.maximum(sums.count, 1e-30), sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def per_position(function, *arrays):
    return np.array([[function(*(a[b, t] for a in arrays)) for t in range(T)] for b in range(B)])


@normalizers
@pytest.mark.parametrize("drawn", [True, False])
def test_loops_over_tokens(normalizer, drawn):
    objective = replace(SELECTIVE, normalizer=normalizer)
    draws = uniforms if drawn else None
    sums = jax.jit(objective)(student, teacher, mask, draws)
    divergence = per_position(lambda q, p: divergences.skew_kl(q, p, 0.1)[0], student, teacher)
    acceptance = per_position(lambda q, p: verifiers.spec_k(q, p, 2), student, teacher)
    wanted = oracle.objective(divergence, acceptance, mask, draws, 0.05, normalizer)
    for name, value in asdict(sums).items():
        assert value.dtype == jnp.float32 and value.shape == ()
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, err_msg=name)
    assert 0 < wanted["accepted"] < wanted["tokens"]


@normalizers
def test_gradient_is_the_weighted_divergence_gradient(normalizer):
    objective = replace(SELECTIVE, normalizer=normalizer)
    (_, sums), gradient = loss_and_gradient(objective, teacher, mask, uniforms)(student)
    acceptance = per_position(lambda q, p: verifiers.spec_k(q, p, 2), student, teacher)
    weights = 0.05 + 0.95 * (uniforms < acceptance)
    per_token = {"token": mask.sum(), "weight": (weights * mask).sum(), "sequence": None}[normalizer]
    for b in range(B):
        for t in range(T):
            divisor = per_token if per_token is not None else 6 * max(mask[b].sum(), 1)
            wanted = divergences.skew_kl(student[b, t], teacher[b, t], 0.1)[1] * weights[b, t] * mask[b, t] / divisor
            np.testing.assert_allclose(gradient[b, t], wanted, rtol=1e-4, atol=1e-7)
    assert np.all(np.asarray(gradient)[~mask] == 0)


@normalizers
def test_one_batch_of_8_is_8_micro_batches_of_1(normalizer):
    objective = replace(SELECTIVE, normalizer=normalizer)
    whole = objective(student, teacher, mask, uniforms)
    parts = distill.LossSums.zeros()
    one = jax.jit(objective)
    for b in range(B):
        row = slice(b, b + 1)
        parts = parts + one(student[row], teacher[row], mask[row], uniforms[row])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), parts, whole)

    # The gradient of the numerators adds up as well: dividing once by the total count is all there is to accumulation.
    numerator = jax.jit(jax.grad(lambda z, *rest: objective(z, *rest).loss))
    rows = [numerator(*(a[b : b + 1] for a in (student, teacher, mask, uniforms))) for b in range(B)]
    whole_gradient = numerator(student, teacher, mask, uniforms)
    np.testing.assert_allclose(jnp.concatenate(rows), whole_gradient, rtol=1e-5, atol=1e-8)


@normalizers
def test_one_batch_of_8_is_8_devices(normalizer):
    objective = replace(SELECTIVE, normalizer=normalizer)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    function = loss_and_gradient(objective, teacher, mask, uniforms)
    (_, sums), gradient = function(student)
    arguments = jax.device_put((student, teacher, mask, uniforms), by_row)

    @jax.jit
    def sharded(*args):
        return jax.value_and_grad(lambda z: objective(z, *args[1:]).loss)(args[0])

    loss, sharded_gradient = sharded(*arguments)
    np.testing.assert_allclose(loss, sums.loss, rtol=1e-5)
    np.testing.assert_allclose(sharded_gradient / sums.count, gradient, rtol=1e-5, atol=1e-8)


def test_token_terms_by_chunks_are_the_whole():
    whole = SELECTIVE.token_terms(student, teacher, uniforms)
    flat = [a.reshape(B * T, *a.shape[2:]) for a in (student, teacher, uniforms)]
    chunks = [SELECTIVE.token_terms(*(a[i : i + 7] for a in flat)) for i in range(0, B * T, 7)]  # the last is ragged
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts).reshape(B, T), *chunks)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), joined, whole)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5),
        distill.reduce_terms(joined, mask, "sequence"),
        SELECTIVE(student, teacher, mask, uniforms),
    )


@pytest.mark.parametrize("chunk_size", [1, 2, T, 100])
def test_chunk_size_changes_no_number(chunk_size):
    objective = replace(SELECTIVE, label_share=0.2)
    arguments, options = (teacher, mask, uniforms, labels), {"alpha": jnp.linspace(0.01, 0.4, B)}
    whole = loss_and_gradient(objective, *arguments, **options)(student)
    chunked = loss_and_gradient(partial(objective, chunk_size=chunk_size), *arguments, **options)(student)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), chunked, whole)
    without_gradient = objective(student, *arguments, chunk_size=chunk_size, **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), without_gradient, whole[0][1])


def test_masked_zero_weight_and_teacher_gradients_are_exactly_zero():
    objective = replace(SELECTIVE, floor=0.0, verifier=partial(selection.greedy_top_k, k=2))
    accepted = np.asarray(selection.greedy_top_k(student, teacher, k=2)) == 1
    assert 0 < (accepted & mask).sum() < mask.sum()
    gradients = jax.grad(lambda *z: objective(*z, mask).loss, argnums=(0, 1))(student, teacher)
    assert np.all(np.asarray(gradients[0])[~(accepted & mask)] == 0)
    assert np.all(np.any(np.asarray(gradients[0])[accepted & mask] != 0, axis=-1))
    assert np.all(np.asarray(gradients[1]) == 0)


def test_infinite_divergence_at_a_position_without_weight_leaves_no_nan():
    bad = teacher.copy()
    bad[:, 2, 3] = -np.inf  # the student expects what the teacher excludes
    keep = mask.copy()
    keep[:, 2] = False
    objective = distill.Objective(losses.reverse_kl)
    loss, gradient = jax.value_and_grad(lambda z: objective(z, bad, keep).loss)(student)
    assert np.isfinite(loss) and np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient)[:, 2] == 0)
    rejected = replace(objective, floor=0.0)
    acceptance = jnp.asarray(keep, jnp.float32)
    loss, gradient = jax.value_and_grad(lambda z: rejected(z, bad, mask, acceptance=acceptance).loss)(student)
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))


@normalizers
def test_nothing_valid_gives_zero(normalizer):
    objective = replace(SELECTIVE, normalizer=normalizer)
    nothing = np.zeros_like(mask)
    sums = objective(student, teacher, nothing, uniforms)
    assert all(value == 0 for value in asdict(sums).values())
    gradient = jax.grad(lambda z: objective(z, teacher, nothing, uniforms).loss)(student)
    assert np.all(np.asarray(gradient) == 0)


def test_a_mask_shifted_by_one_token_is_another_loss():
    (shifted, _), gradient = loss_and_gradient(SELECTIVE, teacher, np.roll(mask, 1, axis=1), uniforms)(student)
    (right, _), _ = loss_and_gradient(SELECTIVE, teacher, mask, uniforms)(student)
    assert abs(shifted - right) > 1e-2 * right
    assert np.any(np.asarray(gradient)[~mask] != 0)


def test_labels_shifted_by_one_token_are_another_loss():
    objective = distill.Objective(losses.cross_entropy)
    right = objective(student, teacher, mask, labels=labels)
    wanted = per_position(lambda q, y: -np.log(divergences.softmax(q)[y]), student, labels)
    np.testing.assert_allclose(right.divergence, wanted[mask].sum(), rtol=1e-5)
    shifted = objective(student, teacher, mask, labels=np.roll(labels, 1, axis=1))
    assert abs(shifted.loss - right.loss) > 1e-2 * right.loss


def test_floor_one_is_distillation_without_selection():
    vanilla = replace(SELECTIVE, verifier=selection.accept_all)
    selective = replace(SELECTIVE, floor=1.0)
    a, b = (objective(student, teacher, mask, uniforms) for objective in (vanilla, selective))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
    assert a.accepted == a.tokens == a.weight and b.accepted < b.tokens


def test_temperature_divides_the_divergence_logits_and_not_the_verifier():
    warm = replace(SELECTIVE, temperature=2.0)(student, teacher, mask, uniforms)
    by_hand = SELECTIVE(
        student / 2, teacher / 2, mask, acceptance=selection.spec_k(student, teacher, k=2), uniforms=uniforms
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), warm, by_hand)
    narrow = jnp.asarray(student, jnp.bfloat16), jnp.asarray(teacher, jnp.bfloat16)
    wide = tuple(z.astype(jnp.float32) for z in narrow)
    odd = replace(SELECTIVE, temperature=3.0, verifier=selection.accept_all)
    np.testing.assert_allclose(odd(*narrow, mask).loss, odd(*wide, mask).loss, rtol=1e-6)


def test_label_share_mixes_cross_entropy_in_unweighted():
    mixed = replace(SELECTIVE, label_share=0.3, normalizer="token")
    sums = mixed(student, teacher, mask, uniforms, labels)
    alone = replace(SELECTIVE, normalizer="token")(student, teacher, mask, uniforms)
    entropy = np.asarray(losses.cross_entropy(student, labels))[mask].sum()
    np.testing.assert_allclose(sums.loss, 0.7 * alone.loss + 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(sums.divergence, alone.divergence, rtol=1e-6)
    # The temperature is the divergence's alone.
    warm = replace(mixed, temperature=3.0)(student, teacher, mask, uniforms, labels)
    warm_alone = replace(SELECTIVE, normalizer="token", temperature=3.0)(student, teacher, mask, uniforms)
    np.testing.assert_allclose(warm.loss, 0.7 * warm_alone.loss + 0.3 * entropy, rtol=1e-5)


@pytest.mark.parametrize("normalizer", distill.NORMALIZERS)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_teacher_of_nan_is_no_small_loss(normalizer, chunk_size):
    """Also without a floor, where a rejected token has no weight, and with draws, which reject."""
    broken = teacher.copy()
    broken[0, 2, 4] = np.nan
    for verifier in (selection.greedy_top_k, selection.spec_k, selection.hellinger):
        objective = distill.Objective(losses.forward_kl, verifier, floor=0.0, normalizer=normalizer)
        sums = objective(student, broken, mask, chunk_size=chunk_size)
        assert np.isnan(sums.mean) and np.isnan(sums.accepted) and np.isnan(sums.divergence)
        drawn = replace(objective, floor=0.1)(student, broken, mask, uniforms, chunk_size=chunk_size)
        assert np.isnan(drawn.mean) and drawn.accepted >= 0


def test_alpha_per_sequence():
    alphas = jnp.linspace(0.01, 0.4, B)
    sums = SELECTIVE(student, teacher, mask, uniforms, alpha=alphas)
    apart = distill.LossSums.zeros()
    for b in range(B):
        one = replace(SELECTIVE, divergence=partial(losses.skew_kl, alpha=float(alphas[b])))
        apart = apart + one(*(a[b : b + 1] for a in (student, teacher, mask, uniforms)))
    np.testing.assert_allclose(sums.loss, apart.loss, rtol=1e-5)


def test_ranking_selectors_enter_as_acceptance():
    objective = distill.Objective(losses.cross_entropy, floor=0.0, normalizer="weight")  # RHO-1
    kept = selection.top_fraction(selection.excess_loss(student, teacher, labels), mask, 0.6)
    sums = objective(student, None, mask, labels=labels, acceptance=kept)
    wanted = np.asarray(losses.cross_entropy(student, labels))[np.asarray(kept)]
    np.testing.assert_allclose(sums.loss / sums.count, wanted.mean(), rtol=1e-5)
    assert sums.accepted == float(kept.sum())


def test_atkd_is_two_objectives_on_a_median_split():
    easy, hard = selection.median_split(selection.target_uncertainty(teacher, labels), mask)
    part = partial(distill.Objective, floor=0.0, normalizer="weight")
    on_easy = part(losses.non_target_kl)(student, teacher, mask, labels=labels, acceptance=easy)
    on_hard = part(losses.decoupled_kl)(student, teacher, mask, labels=labels, acceptance=hard)
    loss = 0.2 * on_easy.loss / on_easy.count + 0.8 * on_hard.loss / on_hard.count
    uncertainty = per_position(lambda p, y: 1 - divergences.softmax(p)[y], teacher, labels)
    median = np.sort(uncertainty[mask])[(mask.sum() - 1) // 2]
    non_target = per_position(lambda q, p, y: divergences.non_target_kl(q, p, y)[0], student, teacher, labels)
    both = per_position(lambda q, p, y: divergences.decoupled_kl(q, p, y)[0], student, teacher, labels)
    is_easy = uncertainty < median
    wanted = 0.2 * non_target[mask & is_easy].mean() + 0.8 * both[mask & ~is_easy].mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_plain_jit_and_vmap_agree():
    plain = SELECTIVE(student, teacher, mask, uniforms)
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, jax.jit(SELECTIVE)(student, teacher, mask, uniforms), plain)
    stacked = [np.stack([a, a[::-1]]) for a in (student, teacher, mask, uniforms)]
    both = jax.jit(jax.vmap(SELECTIVE))(*stacked)
    jax.tree.map(lambda pair, single: close(pair, np.array([single, single])), both, plain)


@pytest.mark.parametrize("kind", [np.int32, np.bool_])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_a_mask_closed_over_by_jit_counts_like_one_passed_to_it(kind, place):
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(rng.normal(size=(2, 2, 3, 7)), jnp.float32)
    mask = place(np.array([[0, 1, 1], [0, 0, 1]], kind))
    objective = distill.Objective()
    closed = jax.jit(lambda logits: objective(logits, teacher, mask).loss)(student)
    np.testing.assert_allclose(closed, jax.jit(objective)(student, teacher, mask).loss, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("junk", [np.nan, -np.inf])
def test_what_stands_outside_the_mask_does_not_matter(junk, chunk_size):
    objective = partial(SELECTIVE, chunk_size=chunk_size)
    expected = jax.value_and_grad(lambda z, t: objective(z, t, mask, uniforms).mean)(student, teacher)
    spoiled = [np.where(mask[..., None], logits, np.float32(junk)) for logits in (student, teacher)]
    found = jax.value_and_grad(lambda z, t: objective(z, t, mask, uniforms).mean)(*spoiled)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.asarray(found[1])[~mask].any()


def test_a_chunk_has_at_least_one_step():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        SELECTIVE(student, teacher, mask, uniforms, chunk_size=0)


def test_the_mean_of_nothing_is_zero_and_has_no_gradient():
    nothing = np.zeros_like(mask)
    value, gradient = jax.value_and_grad(lambda z: SELECTIVE(z, teacher, nothing, uniforms).mean)(student)
    assert float(value) == 0.0 and not np.asarray(gradient).any()
    assert float(distill.LossSums.zeros().mean) == 0.0


def test_labels_cannot_be_divided_by_a_sum_of_weights():
    with pytest.raises(ValueError, match="label_share is 0.5"):
        distill.Objective(label_share=0.5, normalizer="weight")


def test_functions_of_any_parameter_names_are_called():
    """By position; the student's logits alone where a function asks for one array."""
    positional = distill.Objective(lambda q, p, labels: losses.decoupled_kl(q, p, labels))
    expected = distill.Objective(losses.decoupled_kl)(student, teacher, mask, None, labels)
    assert float(positional(student, teacher, mask, None, labels).loss) == float(expected.loss)
    entropy = distill.Objective(losses.entropy)(student, teacher, mask)
    assert float(entropy.divergence) == pytest.approx(float(losses.entropy(jnp.asarray(student))[mask].sum()), rel=1e-6)
