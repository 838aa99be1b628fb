"""Verifiers against the NumPy oracle, against sampling, and their identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import divergences as distances
from oracle import verifiers as oracle

from selecttkd_jax import losses, selection
from selecttkd_jax._errors import InputError

VERIFIERS = {
    **{f"greedy-{k}": (partial(selection.greedy_top_k, k=k), partial(oracle.greedy_top_k, k=k)) for k in (1, 5, 10)},
    **{f"spec-{k}": (partial(selection.spec_k, k=k), partial(oracle.spec_k, k=k)) for k in (1, 5, 10)},
    "nucleus": (partial(selection.nucleus, tau=0.8), partial(oracle.nucleus, tau=0.8)),
    "hellinger": (selection.hellinger, lambda q, p: distances.hellinger(q, p)[0]),
    "hellinger_gate": (partial(selection.hellinger_gate, tau=0.4), partial(oracle.hellinger_gate, tau=0.4)),
    "teacher entropy": (
        partial(selection.entropy_gate, threshold=2.0),
        partial(oracle.entropy_gate, threshold=2.0, source="teacher"),
    ),
    "student entropy": (
        partial(selection.entropy_gate, threshold=2.0, source="student"),
        partial(oracle.entropy_gate, threshold=2.0, source="student"),
    ),
}
everyone = pytest.mark.parametrize("name", VERIFIERS)


def logits_pair(positions, vocabulary, seed=0, masked=0):
    """Positions from near agreement to none, peaked to flat, so that every verifier says both yes and no."""
    rng = np.random.default_rng(seed)
    teacher, other = rng.normal(0, 1, (2, positions, vocabulary))
    agreement = rng.uniform(0, 1, (positions, 1))
    scale = rng.uniform(0.5, 8, (positions, 1))
    student = (agreement * teacher + (1 - agreement) * other) * scale
    teacher = teacher * scale
    if masked:
        student[:, -masked:] = teacher[:, -masked:] = -np.inf
    return student.astype(np.float32), teacher.astype(np.float32)


@everyone
@pytest.mark.parametrize("case", ["float32", "bfloat16", "masked tail", "large vocabulary"])
def test_oracle(name, case):
    function, expected = VERIFIERS[name]
    size = {"large vocabulary": (3, 151_936)}.get(case, (40, 64))
    student, teacher = logits_pair(*size, seed=3, masked=20 if case == "masked tail" else 0)
    if case == "bfloat16":
        student, teacher = jnp.asarray(student, jnp.bfloat16), jnp.asarray(teacher, jnp.bfloat16)
    acceptance = jax.jit(function)(student, teacher)
    wanted = [
        expected(np.asarray(q, np.float64), np.asarray(p, np.float64)) for q, p in zip(student, teacher, strict=True)
    ]
    assert acceptance.dtype == jnp.float32
    np.testing.assert_allclose(acceptance, wanted, rtol=1e-5, atol=1e-6)
    if case == "float32" and not name.startswith("spec"):
        assert 0 < np.mean(wanted) < 1  # the fixture exercises both verdicts


@everyone
def test_plain_and_vmap_agree_with_jit_and_nothing_is_differentiated(name):
    function = VERIFIERS[name][0]
    student, teacher = logits_pair(6, 17, seed=4)
    wanted = jax.jit(function)(student, teacher)
    np.testing.assert_allclose(function(student, teacher), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(student, teacher), wanted, rtol=1e-6)
    gradients = jax.jit(jax.grad(lambda q, p: jnp.sum(function(q, p)), argnums=(0, 1)))(student, teacher)
    assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_the_token_of_the_text_passes_as_a_speculative_sample_does():
    student, teacher = logits_pair(40, 64, seed=12)
    labels = np.random.default_rng(12).integers(0, 64, 40).astype(np.int32)
    wanted = [oracle.spec_label(*pair) for pair in zip(student, teacher, labels, strict=True)]
    np.testing.assert_allclose(selection.spec_label(student, teacher, labels), wanted, rtol=1e-5)
    assert 0 < np.mean(wanted) < 1
    # Over the student's own tokens that is Spec-k with k = 1.
    every = jnp.arange(64, dtype=jnp.int32)
    by_token = selection.spec_label(*(jnp.broadcast_to(z[:1], (64, 64)) for z in (student, teacher)), every)
    mean = jnp.sum(jax.nn.softmax(student[0]) * by_token)
    np.testing.assert_allclose(mean, selection.spec_k(student[0], teacher[0], k=1), rtol=1e-5)
    excluded = jnp.array([0.0, -jnp.inf, 0.0])
    for q, p, label, acceptance in (
        (excluded, excluded, 1, 0),
        (excluded, jnp.zeros(3), 1, 1),
        (excluded, excluded, -1, 0),
    ):
        assert selection.spec_label(q, p, jnp.array(label)) == acceptance


def test_a_nucleus_follows_the_teacher():
    teacher = jnp.log(jnp.array([0.6, 0.3, 0.1, 0.0]))
    every_proposal = 9.0 * jnp.eye(4)
    for tau, wanted in ((0.01, [1, 0, 0, 0]), (0.65, [1, 1, 0, 0]), (0.95, [1, 1, 1, 0]), (1.0, [1, 1, 1, 0])):
        found = selection.nucleus(every_proposal, jnp.broadcast_to(teacher, (4, 4)), tau=tau)
        np.testing.assert_array_equal(found, wanted, err_msg=str(tau))
    with pytest.raises(InputError, match="tau must be above 0, got 0.0: at 0 nothing passes"):
        selection.nucleus(teacher, teacher, tau=0.0)


def test_a_k_for_each_position():
    student, teacher = logits_pair(6, 17, seed=13)
    k = np.array([1, 2, 3, 5, 8, 17])
    labels = jnp.arange(6, dtype=jnp.int32)
    for verifier in (selection.greedy_top_k, selection.spec_k, partial(selection.label_in_top_k, labels=labels)):
        together = verifier(student, teacher, k=jnp.asarray(k, jnp.int32))
        alone = [verifier(student, teacher, k=int(one))[i] for i, one in enumerate(k)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6)


def test_greedy_by_hand():
    teacher = jnp.array([4.0, 3.0, 2.0, 1.0])
    for token, rank in enumerate(range(4)):
        student = jax.nn.one_hot(token, 4)
        for k in (1, 2, 3, 4):
            assert selection.greedy_top_k(student, teacher, k=k) == float(rank < k)


def test_greedy_ties():
    tied_teacher = jnp.array([1.0, 2.0, 2.0, 0.0])
    for token, k in ((1, 1), (2, 2), (0, 3), (3, 4)):  # the teacher's order: 1, then 2 (as likely), 0, 3
        student = jax.nn.one_hot(token, 4)
        assert selection.greedy_top_k(student, tied_teacher, k=k) == 1
        assert k == 1 or selection.greedy_top_k(student, tied_teacher, k=k - 1) == 0
    tied_student = jnp.array([0.0, 5.0, 5.0, 0.0])  # proposes token 1, the lower id
    assert selection.greedy_top_k(tied_student, jnp.array([0.0, 1.0, 2.0, 3.0]), k=2) == 0
    assert selection.greedy_top_k(tied_student, jnp.array([0.0, 3.0, 2.0, 1.0]), k=1) == 1


@pytest.mark.parametrize("k", [1, 5, 20])
def test_exactly_k_of_many_tied_tokens_pass(k):
    """Proposed one after the other against bfloat16 logits of few values, as a stable top-k takes them."""
    teacher = jnp.asarray(np.random.default_rng(9).integers(-3, 4, 64), jnp.bfloat16)
    every_proposal = 9.0 * jnp.eye(64, dtype=jnp.bfloat16)
    accepted = selection.greedy_top_k(every_proposal, jnp.broadcast_to(teacher, (64, 64)), k=k)
    by_label = selection.label_in_top_k(
        every_proposal, jnp.broadcast_to(teacher, (64, 64)), jnp.arange(64, dtype=jnp.int32), k=k
    )
    wanted = np.zeros(64)
    wanted[np.asarray(jax.lax.top_k(teacher.astype(jnp.float32), k)[1])] = 1
    np.testing.assert_array_equal(accepted, wanted)
    np.testing.assert_array_equal(by_label, wanted)


def test_what_the_teacher_excludes_is_never_accepted():
    teacher = jnp.array([0.0, -jnp.inf, 1.0, -jnp.inf])
    for token, wanted in enumerate([1, 0, 1, 0]):
        for k in (3, 4):  # more than the teacher leaves
            student, labels = jax.nn.one_hot(token, 4), jnp.array(token)
            assert selection.greedy_top_k(student, teacher, k=k) == wanted
            assert selection.label_in_top_k(student, teacher, labels, k=k) == wanted
    assert selection.label_in_top_k(teacher, teacher, jnp.array(-100), k=4) == 0
    nothing = jnp.full(4, -jnp.inf)
    assert not selection.greedy_top_k(jnp.zeros(4), nothing, k=4) > 0
    assert not selection.greedy_top_k(nothing, teacher, k=4) > 0


READS_BOTH = {
    "greedy": partial(selection.greedy_top_k, k=7),
    "inverted": selection.invert(partial(selection.greedy_top_k, k=7)),
    "spec": selection.spec_k,
    "sampling": partial(selection.spec_k_by_sampling, key=jax.random.key(0)),
    "hellinger": selection.hellinger,
    "gate": partial(selection.hellinger_gate, tau=1.0),
    "nucleus": selection.nucleus,
    "spec label": lambda q, p: selection.spec_label(q, p, jnp.zeros(q.shape[:-1], jnp.int32)),
}
READS_TEACHER = {
    "entropy": partial(selection.entropy_gate, threshold=9.0),
    "label": lambda q, p: selection.label_in_top_k(q, p, jnp.zeros(q.shape[:-1], jnp.int32), k=7),
}
READS_STUDENT = {"entropy of student": partial(selection.entropy_gate, threshold=9.0, source="student")}


@pytest.mark.parametrize("name", [*READS_BOTH, *READS_TEACHER, *READS_STUDENT])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_no_distribution_has_no_acceptance(name, broken):
    verifier = {**READS_BOTH, **READS_TEACHER, **READS_STUDENT}[name]
    student, teacher = logits_pair(4, 7, seed=10)
    broken_student, broken_teacher = student.copy(), teacher.copy()
    # At the proposal or beside it, the first token or the last.
    for row, token in enumerate((0, 6, int(student[2].argmax()), int(student[3].argmin()))):
        broken_student[row, token] = broken_teacher[row, token] = broken
    for q, p, read in (
        (broken_student, teacher, name not in READS_TEACHER),
        (student, broken_teacher, name not in READS_STUDENT),
    ):
        acceptance = verifier(jnp.asarray(q), jnp.asarray(p))
        assert np.all(np.isnan(acceptance)) == read
        drawn = selection.token_weights(acceptance, jnp.zeros(4), floor=0.0)
        assert not read or np.all(np.asarray(drawn.accepted) == 0)
        assert bool(np.isnan(selection.acceptance_rate(acceptance, jnp.ones(4, bool)).value)) == read
    assert np.all(np.isfinite(verifier(jnp.asarray(student), jnp.asarray(teacher))))


@pytest.mark.parametrize("k", [1, 3, 5, 7, 10])
def test_spec_k_is_the_law_of_its_sampling_procedure(k):
    # Three positions, 20,000 keys; the closed form lies within 4 standard errors of the frequency.
    student = jnp.log(jnp.array([[0.90, 0.05, 0.05], [0.5, 0.3, 0.2], [0.98, 0.01, 0.01]]))
    teacher = jnp.log(jnp.array([[0.05, 0.05, 0.90], [0.2, 0.3, 0.5], [0.02, 0.49, 0.49]]))
    keys = jax.random.split(jax.random.key(k), 20_000)
    sample = jax.jit(jax.vmap(lambda key: selection.spec_k_by_sampling(student, teacher, key=key, k=k)))
    frequency = np.mean(np.asarray(sample(keys), np.float64), axis=0)
    exact = np.asarray(selection.spec_k(student, teacher, k=k), np.float64)
    error = np.sqrt(exact * (1 - exact) / len(keys))
    assert np.all(np.abs(frequency - exact) <= 4 * error + 1e-4), (frequency, exact)


def test_one_draw_against_spec_k_has_its_rate():
    student, teacher = logits_pair(5, 17, seed=6)
    acceptance = selection.spec_k(student, teacher, k=3)
    uniforms = jax.random.uniform(jax.random.key(0), (20_000, 5))
    accepted = selection.token_weights(jnp.broadcast_to(acceptance[None], uniforms.shape), uniforms).accepted
    np.testing.assert_allclose(np.mean(accepted, axis=0), acceptance, atol=0.015)


def test_spec_k_keeps_its_digits_where_the_overlap_is_small():
    # Disjoint but for 1e-6: 1 - (1 - 1e-6)^5 in float32 would round to 4.77e-6.
    student, teacher = jnp.log(jnp.array([1.0, 1e-6])), jnp.log(jnp.array([1e-12, 1.0]))
    np.testing.assert_allclose(selection.spec_k(student, teacher, k=5), 5e-6, rtol=1e-4)
    assert selection.spec_k(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]), k=5) == 0


rows = hnp.arrays(np.float32, 11, elements=st.floats(-12, 12, width=32))


@jax.jit
def by_k(zq, zp):
    return (
        jnp.stack([selection.greedy_top_k(zq, zp, k=k) for k in (1, 2, 5, 11)]),
        jnp.stack([selection.spec_k(zq, zp, k=k) for k in (1, 2, 5, 11)]),
        losses.total_variation(zq, zp),
        selection.spec_k(zq, zq, k=1),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows, rows)
def test_identities(zq, zp):
    greedy, spec, tv, equal = jax.device_get(by_k(zq, zp))
    assert greedy[-1] == 1  # k = V accepts all
    assert np.all(np.diff(greedy) >= 0) and np.all(np.diff(spec) >= -1e-6)  # monotone in k
    np.testing.assert_allclose(spec[0], 1 - tv, atol=1e-6)
    np.testing.assert_allclose(equal, 1, atol=1e-6)
    for k, value in zip((1, 2, 5, 11), spec, strict=True):
        assert 1 - tv - 1e-5 <= value <= min(1.0, k * (1 - tv)) + 1e-5


def test_accept_all_and_controls():
    student, teacher = logits_pair(40, 64, seed=7)
    labels = jnp.asarray(np.random.default_rng(8).integers(0, 64, 40), jnp.int32)
    assert np.all(selection.accept_all(student, teacher) == 1)
    assert np.all(selection.random_gate(student, teacher, rate=0.3) == np.float32(0.3))
    greedy = partial(selection.greedy_top_k, k=5)
    np.testing.assert_array_equal(selection.invert(greedy)(student, teacher), 1 - greedy(student, teacher))
    by_label = partial(selection.label_in_top_k, k=20)
    wanted = [oracle.label_in_top_k(p, int(y), 20) for p, y in zip(teacher, labels, strict=True)]
    np.testing.assert_array_equal(by_label(student, teacher, labels), wanted)
    inverted = selection.invert(by_label)(student, teacher, labels=labels)
    np.testing.assert_array_equal(inverted, 1 - np.asarray(wanted))
    assert 0 < np.mean(wanted) < 1
    ignored = jnp.full(40, -100, jnp.int32)
    assert np.all(by_label(student, teacher, ignored) == 0)


def test_weights_by_hand():
    acceptance, uniforms = jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([0.0, 0.4999, 0.5, 0.9999999])
    drawn = selection.token_weights(acceptance, uniforms, floor=0.1)
    np.testing.assert_array_equal(drawn.accepted, [0, 1, 0, 1])
    np.testing.assert_allclose(drawn.weight, [0.1, 1, 0.1, 1])
    expected = selection.token_weights(acceptance, floor=0.1)
    np.testing.assert_array_equal(expected.accepted, acceptance)
    np.testing.assert_allclose(expected.weight, [0.1, 0.55, 0.55, 1])
    assert np.all(selection.token_weights(acceptance, floor=1.0).weight == 1)
    gradient = jax.grad(lambda a: jnp.sum(selection.token_weights(a, floor=0.1).weight))(acceptance)
    assert np.all(np.asarray(gradient) == 0)


def test_what_is_exactly_at_the_bound_is_accepted():
    student, teacher = logits_pair(5, 17, seed=11)
    np.testing.assert_array_equal(selection.hellinger_gate(teacher, teacher, tau=0.0), 1)
    for row in range(5):
        distance = float(selection.hellinger(student[row], teacher[row]))
        assert selection.hellinger_gate(student[row], teacher[row], tau=distance) == 1
        entropy = float(losses.entropy(teacher[row]))
        assert selection.entropy_gate(student[row], teacher[row], threshold=entropy) == 1


def test_labels_outside_the_vocabulary_are_rejected_on_both_sides():
    teacher = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0]), (6, 3))
    labels = jnp.array([-100, -3, -1, 3, 4, 2**31 - 1], jnp.int32)
    np.testing.assert_array_equal(selection.label_in_top_k(teacher, teacher, labels, k=3), 0)


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "label"),
    [("int8", 300, 100), ("uint8", 300, 200), ("int16", 50_000, 30_000), ("uint16", 70_000, 60_000)],
)
def test_labels_may_be_of_a_dtype_too_narrow_for_the_vocabulary(dtype, vocabulary, label):
    """The label is the teacher's second choice, and its first is a token that the dtype cannot hold."""
    logits = jnp.zeros((1, vocabulary)).at[0, label].set(1.0).at[0, vocabulary - 1].set(2.0)
    labels = jnp.array([label], dtype)
    assert selection.spec_label(logits, logits, labels) == 1
    assert [float(selection.label_in_top_k(logits, logits, labels, k=k)[0]) for k in (1, 2)] == [0.0, 1.0]
    log_q = np.asarray(jax.nn.log_softmax(logits[0]))
    np.testing.assert_allclose(losses.hard_cross_entropy(logits, logits, labels), -log_q[label], rtol=1e-6)
    if not dtype.startswith("u"):
        first_choice = losses.hard_cross_entropy(logits, logits, jnp.array([-1], dtype))
        np.testing.assert_allclose(first_choice, -log_q[-1], rtol=1e-6)


def test_an_overlap_that_rounding_lifts_above_one_is_one():
    rng = np.random.default_rng(12)
    student = jnp.asarray(rng.normal(size=(256, 997)), jnp.float32)
    overlap = jnp.sum(jax.nn.softmax(student), axis=-1)
    assert np.max(np.asarray(overlap)) > 1
    for k in (1, 5):
        acceptance = selection.spec_k(student, student, k=k)
        np.testing.assert_allclose(acceptance, 1, atol=1e-6)
        assert np.all(np.asarray(acceptance) <= 1)
