"""The fused head equals the plain objective on materialised logits: values, gradients, verdicts."""

from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import distill, losses, selection

B, T, DS, DT, V = 3, 11, 6, 5, 37
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": partial(losses.skew_kl, alpha=0.1),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=0.3),
    "skew_reverse_kl detached": partial(losses.skew_reverse_kl, alpha=0.3, detach_mixture=True),
    "jensen_shannon": partial(losses.jensen_shannon, beta=0.3),
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "adaptive_kl": losses.adaptive_kl,
    "cross_entropy": losses.cross_entropy,
    "hard_cross_entropy": lambda q, p, labels: losses.hard_cross_entropy(q, p, jnp.where(labels % 2 == 0, -1, labels)),
    "soft_cross_entropy": losses.soft_cross_entropy,
    "decoupled_kl": losses.decoupled_kl,
    "target_kl": losses.target_kl,
    "non_target_kl": losses.non_target_kl,
    "teacher_top_k_kl": partial(losses.teacher_top_k_kl, k=3),
    "teacher_top_k_reverse_kl": partial(losses.teacher_top_k_reverse_kl, k=3),
    "adaptive_kl, boundary in the head": partial(losses.adaptive_kl, mu=0.3, boundary="head"),
}
VERIFIERS = {
    "accept_all": selection.accept_all,
    "greedy_top_k": partial(selection.greedy_top_k, k=3),
    "spec_k": partial(selection.spec_k, k=2),
    "hellinger_gate": partial(selection.hellinger_gate, tau=0.9),
    "entropy_gate": partial(selection.entropy_gate, threshold=2.5),
    "entropy_gate of the student": partial(selection.entropy_gate, threshold=2.5, source="student"),
    "hellinger": selection.hellinger,
    "label_in_top_k": partial(selection.label_in_top_k, k=9),
    "spec_label": selection.spec_label,
    "inverted": selection.invert(partial(selection.greedy_top_k, k=3)),
    "random_gate": partial(selection.random_gate, rate=0.4),
}


def make_batch(dtype=np.float32, *, vocabulary=V, teacher_vocabulary=None, share=0.5, seed=0):
    """Hidden states, heads and biases of both, and what an objective needs of each position."""
    rng = np.random.default_rng(seed)
    teacher_vocabulary = teacher_vocabulary or vocabulary
    models = [
        (rng.normal(size=(B, T, width)), rng.normal(size=(width, size)), rng.normal(size=size))
        for width, size in ((DS, vocabulary), (DT, teacher_vocabulary))
    ]
    student, teacher = jax.tree.map(lambda a: jnp.asarray(a, dtype), models)
    rest = {
        "mask": jnp.asarray(rng.random((B, T)) < share),
        "uniforms": jnp.asarray(rng.random((B, T)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, min(vocabulary, teacher_vocabulary), (B, T)), jnp.int32),
    }
    return student, teacher, rest


def logits_of(hidden, head, bias):
    return jnp.einsum("BTD,DV->BTV", hidden, head) + bias.reshape(1, 1, -1)


def plain(objective, student, teacher, rest, **options):
    """Loss, sums and gradients to hidden states, head and bias, through whole logits."""

    def loss(student):
        sums = objective(logits_of(*student), logits_of(*teacher), **rest, **options)
        return sums.loss, sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(student)


def fused(objective, student, teacher, rest, *, alpha=None, acceptance=None, vocab_first=(False, False), **options):
    """The same from the fused head."""
    tokens = distill.Tokens(**rest, alpha=alpha, acceptance=acceptance)

    def loss(student):
        sums = distill.fused_head(
            objective,
            student[0],
            distill.Head(*student[1:], vocab_first=vocab_first[0]),
            teacher[0],
            distill.Head(*teacher[1:], vocab_first=vocab_first[1]),
            tokens,
            **options,
        )
        return sums.loss, sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(student)


def assert_equal(expected, found, tolerance):
    """All sums and gradients, relative to the largest entry of each array."""
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * max(1e-30, np.abs(one).max()))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_verifier(verifier):
    objective = distill.Objective(partial(losses.skew_kl, alpha=0.1), VERIFIERS[verifier], floor=0.1)
    batch = make_batch()
    (_, expected), expected_gradient = plain(objective, *batch)
    (_, sums), gradient = fused(objective, *batch, chunk_size=8)
    assert_equal((expected, expected_gradient), (sums, gradient), 1e-5)
    assert 0 < float(sums.accepted) <= float(sums.tokens)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_in_float64(divergence):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        objective = distill.Objective(
            DIVERGENCES[divergence], VERIFIERS["spec_k"], floor=0.1, temperature=1.5, label_share=0.2
        )
        batch = make_batch(np.float64)
        assert_equal(plain(objective, *batch), fused(objective, *batch, chunk_size=8), 1e-10)


@pytest.mark.parametrize("normalizer", distill.NORMALIZERS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_normalizer_and_mask(normalizer, share):
    objective = distill.Objective(losses.reverse_kl, VERIFIERS["greedy_top_k"], normalizer=normalizer)
    batch = make_batch(share=share)
    assert_equal(plain(objective, *batch), fused(objective, *batch), 1e-5)


def test_one_valid_position():
    student, teacher, rest = make_batch()
    rest["mask"] = jnp.zeros((B, T), bool).at[1, 4].set(True)
    objective = distill.Objective(losses.reverse_kl)
    (loss, sums), gradient = fused(objective, student, teacher, rest)
    assert_equal(plain(objective, student, teacher, rest), ((loss, sums), gradient), 1e-5)
    assert float(sums.tokens) == 1


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 8, 16, 24, 32, 33, 100])
def test_the_chunk_size_changes_neither_numbers_nor_verdicts(chunk_size):
    """Sizes that do not divide 17 valid positions, nor 33, and one beyond all."""
    objective = distill.Objective(losses.reverse_kl, VERIFIERS["spec_k"], floor=0.1)
    student, teacher, rest = make_batch()
    expected = plain(objective, student, teacher, rest)
    (loss, sums), gradient = fused(objective, student, teacher, rest, chunk_size=chunk_size)
    assert_equal(expected, ((loss, sums), gradient), 1e-5)
    assert float(sums.accepted) == float(expected[0][1].accepted)

    def verdicts(zq, zp, uniforms):
        return uniforms < selection.spec_k(zq, zp, k=2)

    by_chunks = distill.map_logits(
        verdicts,
        student[0],
        distill.Head(student[1]),
        teacher[0],
        distill.Head(teacher[1]),
        rest["mask"],
        chunk_size=chunk_size,
        uniforms=rest["uniforms"],
    )
    bias_free = [(hidden, head, jnp.zeros_like(bias)) for hidden, head, bias in (student, teacher)]
    at_once = verdicts(*(logits_of(*model) for model in bias_free), rest["uniforms"])
    np.testing.assert_array_equal(by_chunks, at_once & rest["mask"])


def test_a_vocabulary_smaller_than_a_tile_and_larger_than_one(monkeypatch):
    from selecttkd_jax.distill import _head_products as head_products

    objective = distill.Objective(losses.forward_kl)
    batch = make_batch()
    expected = plain(objective, *batch)
    for columns in (5, 37, 1000):
        monkeypatch.setattr(head_products, "CACHED_COLUMNS", columns)
        assert_equal(expected, fused(objective, *batch), 1e-5)


@pytest.mark.parametrize("first", [(True, True), (True, False), (False, True)])
def test_heads_as_embedding_tables(first):
    student, teacher, rest = make_batch()
    objective = distill.Objective(losses.skew_reverse_kl, VERIFIERS["greedy_top_k"])
    expected, (hidden_gradient, head_gradient, bias_gradient) = plain(objective, student, teacher, rest)

    def turned(model, turn):
        return (model[0], model[1].T, model[2]) if turn else model

    found = fused(objective, turned(student, first[0]), turned(teacher, first[1]), rest, vocab_first=first)
    head_gradient = head_gradient.T if first[0] else head_gradient
    assert_equal((expected, (hidden_gradient, head_gradient, bias_gradient)), found, 1e-5)


@pytest.mark.parametrize("sizes", [(37, 41), (41, 37), (41, 41)])
def test_heads_of_different_widths_and_padding(sizes):
    """Columns past the tokenizer's 35 ids count for nothing, whichever head they pad."""
    student, teacher, rest = make_batch(vocabulary=sizes[0], teacher_vocabulary=sizes[1])
    rest["labels"] = jnp.minimum(rest["labels"], 34)
    objective = distill.Objective(losses.forward_kl, VERIFIERS["greedy_top_k"], label_share=0.1)

    def cut(model):
        return model[0], model[1][:, :35], model[2][:35]

    (loss, sums), gradient = plain(objective, cut(student), cut(teacher), rest)
    padded = tuple(jnp.pad(g, [(0, 0)] * (g.ndim - 1) + [(0, sizes[0] - 35)]) for g in gradient[1:])
    assert_equal(((loss, sums), (gradient[0], *padded)), fused(objective, student, teacher, rest, vocab_size=35), 1e-5)


def test_a_skew_per_sequence_and_given_acceptance():
    student, teacher, rest = make_batch()
    rest["uniforms"] = None
    objective = distill.Objective(losses.skew_kl, floor=0.0, normalizer="weight")
    options = {"alpha": jnp.array([0.0, 0.1, 0.5]), "acceptance": jnp.asarray(np.random.default_rng(5).random((B, T)))}
    options["acceptance"] = options["acceptance"].astype(jnp.float32)
    assert_equal(
        plain(objective, student, teacher, rest, **options), fused(objective, student, teacher, rest, **options), 1e-5
    )


@pytest.mark.parametrize("verifier", ["greedy_top_k", "spec_k"])
@pytest.mark.parametrize("chunk_size", [3, 8, 16, 33])
def test_skipping_rejected_positions_changes_nothing(verifier, chunk_size):
    objective = distill.Objective(losses.forward_kl, VERIFIERS[verifier], floor=0.0)
    batch = make_batch(share=0.8)
    found = fused(objective, *batch, chunk_size=chunk_size, skip_rejected=True)
    assert_equal(plain(objective, *batch), found, 1e-5)
    assert 0 < float(found[0][1].accepted) < float(found[0][1].tokens)


def test_positions_outside_the_mask_are_never_visited():
    """Not even their NaNs are seen, and their gradient is exactly zero."""
    (hidden, *student), teacher, rest = make_batch()
    spoilt = jnp.where(rest["mask"][..., None], hidden, jnp.nan)
    (loss, _), gradient = fused(distill.Objective(losses.forward_kl), (spoilt, *student), teacher, rest)
    assert jnp.isfinite(loss) and all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in gradient)
    assert np.all(np.asarray(gradient[0])[~np.asarray(rest["mask"])] == 0)


def test_the_teacher_and_everything_else_get_no_gradient():
    student, teacher, rest = make_batch()

    def loss(teacher, uniforms):
        return fused(distill.Objective(), student, teacher, rest | {"uniforms": uniforms})[0][0]

    for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(teacher, rest["uniforms"])):
        assert np.all(np.asarray(leaf) == 0)


def test_values_without_gradient_are_the_same():
    student, teacher, rest = make_batch()
    objective = distill.Objective(losses.reverse_kl, VERIFIERS["greedy_top_k"])
    heads = [distill.Head(*model[1:]) for model in (student, teacher)]
    sums = distill.fused_head(objective, student[0], heads[0], teacher[0], heads[1], distill.Tokens(**rest))
    assert_equal(plain(objective, student, teacher, rest)[0][1], sums, 1e-5)


def test_under_checkpoint_and_vmap():
    student, teacher, rest = make_batch()
    objective = distill.Objective(losses.reverse_kl, VERIFIERS["greedy_top_k"])

    def loss(hidden, mask):
        heads = distill.Head(student[1]), distill.Head(teacher[1])
        return distill.fused_head(objective, hidden, heads[0], teacher[0], heads[1], distill.Tokens(mask)).loss

    expected = jax.grad(loss)(student[0], rest["mask"])
    assert_equal(expected, jax.grad(jax.checkpoint(loss))(student[0], rest["mask"]), 1e-6)
    masks = jnp.stack([rest["mask"], jnp.zeros_like(rest["mask"]), ~rest["mask"]])
    hidden = jnp.stack([student[0]] * 3)
    together = jax.vmap(jax.grad(loss))(hidden, masks)
    for index in range(3):
        assert_equal(jax.grad(loss)(student[0], masks[index]), together[index], 1e-5)


def test_a_cotangent_scales_the_gradient():
    student, teacher, rest = make_batch()
    objective = distill.Objective(losses.reverse_kl)

    def mean(student):
        heads = distill.Head(*student[1:]), distill.Head(teacher[1])
        sums = distill.fused_head(objective, student[0], heads[0], teacher[0], heads[1], distill.Tokens(**rest))
        return 3.0 * sums.loss / sums.count

    def whole(student):
        zeros = jnp.zeros_like(teacher[2])
        sums = objective(logits_of(*student), logits_of(*teacher[:2], zeros), **rest)
        return 3.0 * sums.loss / sums.count

    assert_equal(jax.grad(whole)(student), jax.grad(mean)(student), 1e-5)


def test_bfloat16_operands_float32_statistics():
    """Against float64 on the same rounded operands: only dz is rounded once more, to 8 bits, before its products."""
    student, teacher, rest = make_batch(jnp.bfloat16)
    objective = distill.Objective(losses.forward_kl, VERIFIERS["greedy_top_k"])
    (_, sums), gradient = fused(objective, student, teacher, rest)
    assert [leaf.dtype for leaf in gradient] == [jnp.bfloat16] * 3
    assert all(getattr(sums, field.name).dtype == jnp.float32 for field in fields(sums))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (student, teacher))
        (_, expected), expected_gradient = plain(objective, *wide, rest)
    assert_equal(expected, sums, 1e-5)
    assert_equal(expected_gradient, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient), 2.0**-7)


def test_two_streams():
    pair = distill.TwoStreamObjective(
        distill.Objective(partial(losses.skew_kl, alpha=0.1), VERIFIERS["greedy_top_k"]),
        distill.Objective(partial(losses.skew_reverse_kl, alpha=0.1), VERIFIERS["greedy_top_k"]),
    )
    (_, student_head, _), (_, teacher_head, _), _ = make_batch()
    streams = [make_batch(seed=seed) for seed in (1, 2)]

    def whole(head):
        parts = [
            distill.Stream(student[0] @ head, teacher[0] @ teacher_head, distill.Tokens(**rest))
            for student, teacher, rest in streams
        ]
        sums = pair(*parts, balance=0.7)
        return sums.loss, sums

    def by_chunks(head):
        parts = [
            distill.HiddenStream(student[0], teacher[0], distill.Tokens(**rest)) for student, teacher, rest in streams
        ]
        heads = distill.Head(head), distill.Head(teacher_head)
        sums = distill.fused_two_stream(pair, *parts, *heads, balance=0.7, chunk_size=8)
        return sums.loss, sums

    expected = jax.value_and_grad(whole, has_aux=True)(student_head)
    assert_equal(expected, jax.value_and_grad(by_chunks, has_aux=True)(student_head), 1e-5)


def test_a_ranking_selector_scores_first_and_learns_then():
    student, teacher, rest = make_batch()
    labels, mask = rest["labels"], rest["mask"]
    heads = [(hidden, head) for hidden, head, _ in (student, teacher)]
    zq, zp = (hidden @ head for hidden, head in heads)
    student, teacher = ((hidden, distill.Head(matrix)) for hidden, matrix in heads)
    scores = distill.map_logits(selection.excess_loss, *student, *teacher, mask, labels=labels)
    expected = jnp.where(mask, selection.excess_loss(zq, zp, labels), 0.0)
    np.testing.assert_allclose(scores, expected, atol=1e-5)

    kept = selection.top_fraction(scores, mask, 0.4)
    objective = distill.Objective(losses.cross_entropy, floor=0.0, normalizer="weight")
    whole = jax.grad(lambda z: objective(z, zp, mask, labels=labels, acceptance=kept).loss)(zq)
    tokens = distill.Tokens(mask, labels=labels, acceptance=kept)
    by_chunks = jax.grad(lambda h: distill.fused_head(objective, h, student[1], *teacher, tokens).loss)(heads[0][0])
    np.testing.assert_allclose(by_chunks, whole @ heads[0][1].T, atol=1e-5)


def test_temporary_memory_does_not_grow_with_positions_times_vocabulary():
    def temporary(positions, vocabulary):
        shapes = [(1, positions, 8), (8, vocabulary), (1, positions, 8), (8, vocabulary)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        mask = jax.ShapeDtypeStruct((1, positions), jnp.bool_)
        objective = distill.Objective(losses.reverse_kl, VERIFIERS["greedy_top_k"])

        def loss(student_hidden, student_head, teacher_hidden, teacher_head, mask):
            heads = distill.Head(student_head), distill.Head(teacher_head)
            tokens = distill.Tokens(mask)
            return distill.fused_head(
                objective, student_hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=16
            ).loss

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays, mask).compile()
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    positions, vocabulary = 512, 4096
    grown = temporary(2 * positions, vocabulary) - temporary(positions, vocabulary)
    # Twice the positions: hidden states and per-token numbers, a few dozen floats each, but no row of logits.
    assert grown < positions * 64 * 4
    # Twice the vocabulary: the chunk's logits and the head's gradient, not positions times vocabulary.
    grown = temporary(positions, 2 * vocabulary) - temporary(positions, vocabulary)
    assert grown < vocabulary * (4 * 16 + 4 * 8) * 4 < positions * vocabulary * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"student_head": distill.Head(jnp.ones((DS + 1, V)))},
            r"student_head must be \[D, V\] with D = 6 .* got \(7, 37\)",
        ),
        ({"teacher_head": distill.Head(jnp.ones((DT, V + 1)))}, "heads have 37 and 38 columns.*vocab_size"),
        ({"vocab_size": V + 1}, "vocab_size must be from 1 to .* 37, got 38"),
        ({"vocab_size": 0}, "vocab_size must be from 1 to .* 37, got 0"),
        (
            {"teacher_head": distill.Head(jnp.ones((DT, V + 2))), "vocab_size": V + 1},
            "vocab_size must be from 1 to the width of the narrower head, 37, got 38",
        ),
        ({"tokens": distill.Tokens(jnp.ones((B, T + 1), bool))}, r"student_hidden \(3, 11, 6\) and mask \(3, 12\)"),
        (
            {"tokens": distill.Tokens(jnp.ones((B, T), bool), jnp.ones((B, 1)))},
            "uniforms and mask must have the same shape",
        ),
        (
            {"student_head": distill.Head(jnp.ones((DS, V)), jnp.ones((V + 2,)))},
            r"student_bias must have shape \(37,\), got \(39,\)",
        ),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"chunk_size": "large"}, "chunk_size must be a whole number or 'auto', got 'large'"),
        ({"memory_budget": 0}, "memory_budget must be at least 1"),
        ({"skip_rejected": True}, "skip_rejected needs floor 0"),
        (
            {"skip_rejected": True, "objective": distill.Objective(floor=0.0, label_share=0.5)},
            "skip_rejected needs floor 0 and label_share 0, got 0.0 and 0.5",
        ),
        ({"student_hidden": jnp.ones((B * T, DS))}, "student_hidden must have 3 axes"),
        ({"teacher_hidden": None}, "teacher_hidden is None: give both of the teacher's, or neither"),
        ({"teacher_hidden": None, "teacher_head": None}, "asks the teacher, whose logits are None"),
    ],
)
def test_bad_input_is_named(change, message):
    student, teacher, rest = make_batch()
    arguments = {
        "student_hidden": student[0],
        "student_head": distill.Head(student[1]),
        "teacher_hidden": teacher[0],
        "teacher_head": distill.Head(teacher[1]),
        "tokens": distill.Tokens(**rest),
    }
    with pytest.raises(ValueError, match=message):
        distill.fused_head(**({"objective": distill.Objective()} | arguments | change))


def test_wrong_types_are_named():
    student, teacher, rest = make_batch()
    arguments = [student[0], distill.Head(student[1]), teacher[0], distill.Head(teacher[1])]
    tokens = distill.Tokens(**rest)
    with pytest.raises(TypeError, match="student_hidden must be floating point, got int32"):
        distill.fused_head(distill.Objective(), arguments[0].astype(jnp.int32), *arguments[1:], tokens)
    pair = distill.TwoStreamObjective(distill.Objective(), distill.Objective())
    with pytest.raises(TypeError, match="fused_two_stream takes two streams"):
        distill.fused_head(pair, *arguments, tokens)
    with pytest.raises(TypeError, match=r"student_head must be a distill.Head\(matrix\), got ArrayImpl"):
        distill.fused_head(distill.Objective(), student[0], student[1], *arguments[2:], tokens)
    with pytest.raises(TypeError, match=r"tokens must be a distill.Tokens\(mask, uniforms\), got ArrayImpl"):
        distill.fused_head(distill.Objective(), *arguments, rest["mask"])
    with pytest.raises(TypeError, match="fused_head takes one stream"):
        distill.fused_two_stream(replace(distill.Objective()), None, None, *arguments[1::2])


def test_budget_sets_the_chunk():
    from selecttkd_jax.distill._head_products import HeadInputs
    from selecttkd_jax.distill._placed_sweep import choose_placement

    model = HeadInputs(jnp.ones((1, 4096, 4)), jnp.ones((4, 1000)), None, vocab_first=False)
    sizes = [choose_placement(model, model, "auto", budget).options.chunk_size for budget in (1, 800_000, 2**40)]
    assert sizes[0] == 8
    # Two float32 logits a column: 8,000 bytes a position.
    assert sizes[1] == 96
    assert sizes[1] < sizes[2] <= 4096


@pytest.mark.parametrize(
    ("budget", "chunk", "tail"),
    [(706 * 8000, 640, 128), (836 * 8000, 768, 384), (200 * 8000, 128, 128), (100 * 8000, 100, 50), (2**40, 1024, 512)],
)
def test_chunks_of_accelerators_are_whole_tiles(monkeypatch, budget, chunk, tail):
    from selecttkd_jax.distill import _placed_sweep
    from selecttkd_jax.distill._head_products import HeadInputs

    monkeypatch.setattr(_placed_sweep, "on_cpu", lambda: False)
    model = HeadInputs(jnp.ones((1, 4096, 4)), jnp.ones((4, 1000)), None, vocab_first=False)
    options = _placed_sweep.choose_placement(model, model, "auto", budget).options
    assert (options.chunk_size, options.tail_size) == (chunk, tail)


@pytest.mark.parametrize("positions", [640, 700, 896, 1280])
def test_chunks_of_whole_tiles_end_where_positions_do(monkeypatch, positions):
    """Nearly all positions carry loss, so that the last chunk is nearly full."""
    from selecttkd_jax.distill import _placed_sweep

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((1, positions, 3), (3, 11)) * 2]
    student, teacher = arrays[:2], arrays[2:]
    mask = np.arange(positions)[None, :] < positions - 5
    budget = 700 * 11 * 8

    def sums(hidden, chunk_size):
        heads = distill.Head(student[1]), distill.Head(teacher[1])
        tokens = distill.Tokens(mask)
        options = {"chunk_size": chunk_size, "memory_budget": budget}
        return distill.fused_head(distill.Objective(), hidden, heads[0], teacher[0], heads[1], tokens, **options).mean

    expected = jax.value_and_grad(sums)(jnp.asarray(student[0]), 64)
    monkeypatch.setattr(_placed_sweep, "on_cpu", lambda: False)
    found = jax.value_and_grad(sums)(jnp.asarray(student[0]), "auto")
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5 * np.abs(expected[1]).max())


@pytest.mark.parametrize("normalizer", distill.NORMALIZERS)
def test_a_batch_without_any_valid_position_has_loss_zero_and_no_gradient(normalizer):
    objective = distill.Objective(losses.reverse_kl, normalizer=normalizer, floor=0.0)
    student, teacher, rest = make_batch(share=0.0)

    def mean(hidden, head, divided):
        heads = distill.Head(head), distill.Head(teacher[1])
        sums = distill.fused_head(objective, hidden, heads[0], teacher[0], heads[1], distill.Tokens(rest["mask"]))
        return sums.loss / sums.count if divided else sums.mean

    assert float(mean(*student[:2], False)) == 0.0
    for divided in (True, False):  # also where a caller divides by the count of zero
        for gradient in jax.grad(mean, (0, 1))(*student[:2], divided):
            assert not np.asarray(gradient).any()


@pytest.mark.parametrize("alpha, message", [([0.1, 1.5, 0.1], "in \\[0.0, 1.0\\)"), ([0.1], "one skew per sequence")])
def test_a_skew_per_sequence_is_checked(alpha, message):
    student, teacher, rest = make_batch()
    objective = distill.Objective(losses.skew_kl)
    with pytest.raises(ValueError, match=message):
        tokens = distill.Tokens(rest["mask"], alpha=jnp.array(alpha))
        heads = distill.Head(student[1]), distill.Head(teacher[1])
        distill.fused_head(objective, student[0], heads[0], teacher[0], heads[1], tokens)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 33, "auto"])
@pytest.mark.parametrize("normalizer", distill.NORMALIZERS)
def test_an_objective_that_asks_no_teacher_needs_none(chunk_size, normalizer):
    """Cross-entropy on labels: equal to the plain objective, and to what it is by its definition."""
    student, teacher, rest = make_batch()
    rest |= {"uniforms": None}
    objective = distill.Objective(losses.cross_entropy, selection.accept_all, normalizer=normalizer)

    def by_chunks(student):
        head = distill.Head(*student[1:])
        sums = distill.fused_head(
            objective, student[0], head, None, None, distill.Tokens(**rest), chunk_size=chunk_size
        )
        return sums.loss, sums

    def whole(student):
        sums = objective(logits_of(*student), None, **rest)
        return sums.loss, sums

    found = jax.jit(jax.value_and_grad(by_chunks, has_aux=True))(student)
    assert_equal(jax.value_and_grad(whole, has_aux=True)(student), found, 1e-5)
    assert_equal(plain(objective, student, teacher, rest), found, 1e-5)
    log_probs = jax.nn.log_softmax(logits_of(*student))
    picked = -jnp.take_along_axis(log_probs, rest["labels"][..., None], axis=-1)[..., 0]
    assert float(found[0][1].divergence) == pytest.approx(
        float(jnp.sum(jnp.where(rest["mask"], picked, 0.0))), rel=1e-5
    )


def test_padding_counts_for_nothing_without_a_teacher_too():
    student, _, rest = make_batch(vocabulary=41)
    rest |= {"uniforms": None, "labels": jnp.minimum(rest["labels"], 34)}
    objective = distill.Objective(losses.cross_entropy, selection.accept_all)
    head = distill.Head(student[1])
    tokens = distill.Tokens(**rest)
    found = distill.fused_head(objective, student[0], head, None, None, tokens, vocab_size=35)
    cut = distill.fused_head(objective, student[0], distill.Head(student[1][:, :35]), None, None, tokens)
    assert_equal(cut, found, 1e-6)


def test_a_function_of_one_models_logits():
    student, _, rest = make_batch()

    def entropy(zq, zp):
        assert zp is None
        return losses.entropy(zq)

    found = distill.map_logits(entropy, student[0], distill.Head(student[1]), None, None, rest["mask"], chunk_size=4)
    expected = jnp.where(rest["mask"], losses.entropy(student[0] @ student[1]), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
