"""Two streams, DistiLLM-2's skew and balance, against their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import divergences as oracle

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError

B, T, V = 3, 4, 7
skl, srkl = partial(losses.skew_kl, alpha=0.1), partial(losses.skew_reverse_kl, alpha=0.1, detach_mixture=True)
cald = distill.TwoStreamObjective(distill.Objective(skl), distill.Objective(srkl))  # no verifier: accept_all


def stream(seed, **options):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, B, T, V)).astype(np.float32)
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    return distill.Stream(logits[0], logits[1], distill.Tokens(mask, **options))


def mean_of_means(divergence, s):
    rows = [
        np.mean(
            [
                divergence(s.student_logits[b, t], s.teacher_logits[b, t], 0.1)[0]
                for t in range(T)
                if s.tokens.mask[b, t]
            ]
        )
        for b in range(B)
    ]
    return np.mean(rows)


@pytest.mark.parametrize("balance", [0.5, 0.75, 1.0])
def test_released_form(balance):
    # (2 - b) SEQ[SKL on teacher responses] + b SEQ[SRKL on student responses], b = 2 balance
    ours, theirs = stream(0), stream(1)
    sums = jax.jit(cald)(ours, theirs, balance=balance)
    b = 2 * balance
    wanted = (2 - b) * mean_of_means(oracle.skew_kl, ours) + b * mean_of_means(oracle.skew_reverse_kl, theirs)
    np.testing.assert_allclose(sums.loss / sums.count, wanted, rtol=1e-5)
    assert sums.count == B


@pytest.mark.parametrize("pair", [(skl, skl), (srkl, srkl), (skl, srkl), (srkl, skl)], ids=lambda p: "")
def test_each_stream_has_its_own_divergence_and_verifier(pair):
    parts = [distill.Objective(d, partial(selection.greedy_top_k, k=k)) for d, k in zip(pair, (1, 3), strict=True)]
    both = distill.TwoStreamObjective(*parts)
    first, second = stream(2), stream(3)
    sums = both(first, second)
    for part, s, alone in ((parts[0], first, sums.teacher_responses), (parts[1], second, sums.student_responses)):
        jax.tree.map(np.testing.assert_array_equal, part(s.student_logits, s.teacher_logits, s.tokens.mask), alone)
    np.testing.assert_allclose(sums.loss, sums.teacher_responses.loss + sums.student_responses.loss, rtol=1e-6)


def test_sums_add_up_over_micro_batches_and_objectives_are_values():
    first, second = stream(4), stream(5)
    rows = [jax.tree.map(lambda a, b=b: a[b : b + 1], (first, second)) for b in range(B)]
    total = cald(*rows[0], balance=0.6) + cald(*rows[1], balance=0.6) + cald(*rows[2], balance=0.6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), total, cald(first, second, balance=0.6))
    again = distill.TwoStreamObjective(distill.Objective(partial(losses.skew_kl, alpha=0.1)), distill.Objective(srkl))
    assert again == cald and hash(again) == hash(cald)


def test_gradients_reach_both_streams_in_proportion():
    first, second = stream(6), stream(7)

    def loss(z1, z2, balance):
        return cald(
            distill.Stream(z1, first.teacher_logits, first.tokens),
            distill.Stream(z2, second.teacher_logits, second.tokens),
            balance=balance,
        ).loss

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    even, odd = (gradient(first.student_logits, second.student_logits, b) for b in (0.5, 0.75))
    np.testing.assert_allclose(odd[0], 0.5 * even[0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(odd[1], 1.5 * even[1], rtol=1e-5, atol=1e-9)


def test_one_stream_batches_are_refused():
    s = stream(8)
    with pytest.raises(InputError, match="the teacher's responses and the student's.*student_responses is missing"):
        cald(s, None)
    with pytest.raises(InputError, match="teacher_responses is a ndarray.*use distill.Objective"):
        cald(s.student_logits, s.teacher_logits)
    with pytest.raises(InputError, match="balance must be in"):
        cald(s, s, balance=1.5)
    with pytest.raises(InputError, match="same normalizer, got sequence and token"):
        distill.TwoStreamObjective(distill.Objective(skl), distill.Objective(srkl, normalizer="token"))
    with pytest.raises(TypeError, match="student_responses must be an Objective"):
        distill.TwoStreamObjective(distill.Objective(skl), srkl)


def test_confidence_gap():
    s = stream(9)
    labels = np.random.default_rng(10).integers(0, V, (B, T)).astype(np.int32)
    mask = s.tokens.mask.copy()
    mask[2] = False
    gap = distill.confidence_gap(s.student_logits, s.teacher_logits, labels, mask)

    def likelihood(logits, b):
        chosen = [oracle.softmax(logits[b, t])[labels[b, t]] for t in range(T) if mask[b, t]]
        return np.exp(np.mean(np.log(chosen)))

    wanted = [likelihood(s.teacher_logits, b) - likelihood(s.student_logits, b) for b in range(2)]
    np.testing.assert_allclose(gap, [*wanted, 0.0], rtol=1e-5, atol=1e-7)
    gradient = jax.grad(lambda z: distill.confidence_gap(z, s.teacher_logits, labels, mask).sum())(s.student_logits)
    assert np.all(np.asarray(gradient) == 0)


def test_adaptive_skew_is_nearly_a_switch():
    m = 0.2
    gap = jnp.array([-0.5, -0.01, 0.05, 0.17, 0.19, 0.2, 0.5])
    alpha = distill.adaptive_skew(gap, m)
    ramp = 1 - 0.9 * m / (0.19 + 1e-5)
    np.testing.assert_allclose(alpha, [0.1, 0.1, 0.01, 0.01, ramp, 0.1, 0.1], rtol=1e-3)
    # A gap of nothing, measured against nothing, is no hard sample.
    np.testing.assert_allclose(distill.adaptive_skew(jnp.array([0.0, -1e-5]), 0.0), 0.1)
    with pytest.raises(InputError, match="base must be in"):
        distill.adaptive_skew(gap, m, base=1.0)


def test_reference_gap_freezes_after_its_window():
    reference = distill.ReferenceGap.start()
    assert reference.value == 0
    for value in (1.0, 3.0, 100.0):
        reference = jax.jit(lambda r, g: r.update(g, window=2))(reference, jnp.full(4, value))
    assert reference.value == 2.0


def test_balance_schedules():
    published = partial(distill.balance_published, steps_per_epoch=6, epochs=3)
    #             epoch 1: 1/3 + t/T                epoch 2: 2/3 + t/T        epoch 3
    wanted = [0.5, 0.5, 2 / 3, 5 / 6, 1.0, 1.0, 2 / 3, 5 / 6, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose([published(step) for step in range(14)], wanted, rtol=1e-5)
    smooth = partial(distill.balance_smooth, steps_per_epoch=6, epochs=3)
    np.testing.assert_allclose([smooth(step) for step in (0, 8, 9, 12, 18)], [0.5, 0.5, 0.5, 2 / 3, 1], rtol=1e-5)
    released = partial(distill.balance_released, total_steps=100)
    np.testing.assert_allclose([released(step) for step in (0, 25, 50, 99)], [0.5, 0.625, 0.75, 0.75], rtol=1e-6)
    assert jax.jit(released)(jnp.array(25)) == 0.625


@pytest.mark.parametrize("steps_per_epoch", [6, 41, 97])
def test_epochs_begin_at_their_first_step_also_when_compiled(steps_per_epoch):
    """A compiled quotient of floats falls just short of the epoch at some of these."""
    epochs = 5
    steps = np.arange(steps_per_epoch * epochs)
    epoch, within = steps // steps_per_epoch, steps % steps_per_epoch / steps_per_epoch
    options = {"steps_per_epoch": steps_per_epoch, "epochs": epochs}
    for schedule, wanted in (
        (distill.balance_published, (epoch + 1) / epochs + within),
        (distill.balance_smooth, (epoch + within) / epochs),
    ):
        found = jax.jit(jax.vmap(partial(schedule, **options)))(steps.astype(np.int32))
        np.testing.assert_allclose(found, np.clip(wanted, 0.5, 1), rtol=1e-5)


@pytest.mark.parametrize("normalizer", distill.NORMALIZERS)
def test_streams_of_unequal_counts_share_one_divisor(normalizer):
    """2 (1 - b) n_t L_t + 2 b n_s L_s over the mean of the two counts, with one student row empty."""
    both = distill.TwoStreamObjective(*(distill.Objective(d, normalizer=normalizer) for d in (skl, srkl)))
    first, second = stream(6), stream(7)
    first.tokens.mask[:] = True
    second.tokens.mask[:] = np.arange(B)[:, None] == 1
    sums = both(first, second, balance=0.7)
    counts, means = [], []
    for divergence, s in ((oracle.skew_kl, first), (oracle.skew_reverse_kl, second)):
        rows = [
            [
                divergence(s.student_logits[b, t], s.teacher_logits[b, t], 0.1)[0]
                for t in range(T)
                if s.tokens.mask[b, t]
            ]
            for b in range(B)
        ]
        rows = [row for row in rows if row]
        counts.append(len(rows) if normalizer == "sequence" else sum(map(len, rows)))
        means.append(np.mean([np.mean(row) for row in rows]) if normalizer == "sequence" else np.mean(sum(rows, [])))
    wanted = (0.6 * counts[0] * means[0] + 1.4 * counts[1] * means[1]) / np.mean(counts)
    assert counts[0] > counts[1]
    assert float(sums.mean) == pytest.approx(wanted, rel=1e-5)
    assert float(sums.student_responses.mean) == pytest.approx(means[1], rel=1e-5)
