"""Shadow verifiers: what others would have accepted, counted in loops; the loss does not know of them."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from oracle import verifiers

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError

B, T, D, V = 4, 5, 6, 17
SHADOWS = (
    ("greedy_top_k", partial(selection.greedy_top_k, k=2)),
    ("spec_k", partial(selection.spec_k, k=1)),
    ("at_a_rate", partial(selection.random_gate, rate=0.3)),
    ("random", None),
)
PLAIN = distill.Objective(losses.reverse_kl, partial(selection.spec_k, k=2), floor=0.1)
WATCHED = replace(PLAIN, shadows=SHADOWS)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    hidden, teacher_hidden = rng.normal(0, 0.8, (2, B, T, D)).astype(np.float32)
    head, teacher_head = rng.normal(size=(2, D, V)).astype(np.float32)
    mask = np.arange(T) < np.array([5, 2, 0, 4])[:, None]
    return hidden, head, teacher_hidden, teacher_head, mask, rng.random((B, T)).astype(np.float32)


def loops(batch, drawn):
    """accepted, overlap and rejected_overlap of each shadow over the valid positions, one after the other."""
    hidden, head, teacher_hidden, teacher_head, mask, uniforms = batch
    pairs = list(zip((hidden @ head)[mask], (teacher_hidden @ teacher_head)[mask], uniforms[mask], strict=True))
    decide = (lambda acceptance, u: float(u < acceptance)) if drawn else (lambda acceptance, u: acceptance)
    active = np.array([decide(verifiers.spec_k(q, p, 2), u) for q, p, u in pairs])
    found = {}
    for name, function in (("greedy_top_k", verifiers.greedy_top_k), ("spec_k", verifiers.spec_k)):
        other = np.array([decide(function(q, p, 2 if name == "greedy_top_k" else 1), u) for q, p, u in pairs])
        both, neither = np.minimum(active, other).sum(), np.minimum(1 - active, 1 - other).sum()
        either, one_rejects = np.maximum(active, other).sum(), np.maximum(1 - active, 1 - other).sum()
        found[name] = other.mean(), both / either, neither / one_rejects
    for name, rate in (("at_a_rate", 0.3), ("random", active.mean())):  # a coin of its own, in expectation
        both, neither = (rate * active).sum(), ((1 - rate) * (1 - active)).sum()
        if name == "random":
            both, neither = rate**2 * len(pairs), (1 - rate) ** 2 * len(pairs)
        found[name] = rate, both / (len(pairs) - neither), neither / (len(pairs) - both)
    return found


@pytest.mark.parametrize("drawn", [True, False])
def test_counts_in_loops_whole_by_chunks_and_fused(batch, drawn):
    hidden, head, teacher_hidden, teacher_head, mask, uniforms = batch
    draws = uniforms if drawn else None

    def whole(objective, head, **options):
        sums = objective(hidden @ head, teacher_hidden @ teacher_head, mask, draws, **options)
        return sums.loss, sums

    def fused(objective, head):
        heads, tokens = (distill.Head(head), distill.Head(teacher_head)), distill.Tokens(mask, draws)
        sums = distill.fused_head(objective, hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=3)
        return sums.loss, sums

    wanted = loops(batch, drawn)
    for loss in (whole, partial(whole, chunk_size=2), fused):
        (_, sums), gradient = jax.jit(jax.value_and_grad(partial(loss, WATCHED), has_aux=True))(head)
        row = sums.means()
        for name, values in wanted.items():
            keys = [f"shadows/{name}/{key}" for key in ("accepted", "overlap", "rejected_overlap")]
            np.testing.assert_allclose([row[key] for key in keys], values, rtol=1e-5, err_msg=name)
        # What is minimised is the same to the last digit, and so is every other number of the row.
        (_, plain), plain_gradient = jax.jit(jax.value_and_grad(partial(loss, PLAIN), has_aux=True))(head)
        np.testing.assert_array_equal(gradient, plain_gradient)
        assert {key: value for key, value in row.items() if not key.startswith("shadows/")} == plain.means()


def test_they_add_up_over_parts_and_streams(batch):
    hidden, head, teacher_hidden, teacher_head, mask, uniforms = batch
    student, teacher = hidden @ head, teacher_hidden @ teacher_head
    watched = jax.jit(WATCHED)
    whole = watched(student, teacher, mask, uniforms)
    parts = [watched(*(a[rows] for a in (student, teacher, mask, uniforms))) for rows in (slice(0, 1), slice(1, 4))]
    assert (parts[0] + parts[1]).means() == pytest.approx(whole.means(), rel=1e-5)
    nothing = distill.ShadowedSums.zeros(SHADOWS)
    assert (nothing + whole).means() == whole.means() and set(nothing.means()) == set(whole.means())
    for start in (distill.LossSums.zeros(), distill.ShadowedSums.zeros(SHADOWS[:1])):
        for one, other in ((start, whole), (whole, start)):
            with pytest.raises(InputError, match=r"start from ShadowedSums.zeros\(objective.shadows\)"):
                one + other
    with pytest.raises(InputError, match="of nothing but LossSums"):
        distill.ShadowedSums.zeros()
    stream = distill.Stream(student, teacher, distill.Tokens(mask, uniforms))
    both = jax.jit(distill.TwoStreamObjective(WATCHED, WATCHED))(stream, stream).means()
    for key, value in whole.means().items():
        if key.startswith("shadows/"):
            assert both[key] == both[f"student_responses/{key}"] == pytest.approx(value, rel=1e-5)


def test_under_a_random_gate_the_others_keep_their_own_luck(batch):
    """Its draw says nothing of them: in the mean over many draws their overlap is that of independent events."""
    hidden, head, teacher_hidden, teacher_head, mask, _ = batch
    student, teacher = hidden @ head, teacher_hidden @ teacher_head
    gate = partial(selection.random_gate, rate=0.5)
    draws = np.random.default_rng(2).random((400, B, T)).astype(np.float32)
    for verifier in (gate, selection.invert(gate)):  # which is one, too
        objective = distill.Objective(losses.forward_kl, verifier, shadows=(("spec_k", selection.spec_k),))
        sums = jax.jit(jax.vmap(lambda u, objective=objective: objective(student, teacher, mask, u)))(draws)
        shadow = sums.shadows["spec_k"]
        np.testing.assert_allclose(np.mean(shadow.both), 0.5 * np.mean(shadow.accepted), rtol=0.03)
        assert np.ptp(shadow.accepted) == 0


def test_equal_ones_are_one_objective_and_others_are_refused():
    again = replace(WATCHED, shadows=tuple((n, f and partial(f.func, **f.keywords)) for n, f in SHADOWS))
    assert again == WATCHED != PLAIN and hash(again) == hash(WATCHED)
    for wrong, message in (
        ((("a", "spec_k"),), "the shadow a must be a function of logits or None, got 'spec_k'"),
        (("spec_k",), "shadows must be pairs of a name and a verifier, got 'spec_k'"),
        ((("a", None), ("a", None)), "names of shadows must differ, got a, a"),
    ):
        with pytest.raises(TypeError, match=message):
            replace(PLAIN, shadows=wrong)
