"""Meshes with explicit axes, which `jax.make_mesh` gives when nothing is said: the numbers of one device.

Auto axes beside them, so that both kinds are held to the same.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax import distill, losses, selection
from selecttkd_jax.distill import Head, Tokens

B, T, D, V = 8, 6, 8, 64
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2)}
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": losses.skew_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
    "adaptive_kl": losses.adaptive_kl,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "soft_cross_entropy": losses.soft_cross_entropy,
    "teacher_top_k_kl": partial(losses.teacher_top_k_kl, k=5),
}
WITH_LABELS = {
    "cross_entropy": lambda q, p, labels: losses.cross_entropy(q, labels),
    "hard_cross_entropy": lambda q, p, labels: losses.hard_cross_entropy(q, p, jnp.where(labels % 2 == 0, -1, labels)),
    "decoupled_kl": losses.decoupled_kl,
    "target_kl": losses.target_kl,
    "non_target_kl": losses.non_target_kl,
}
VERIFIERS = {
    "accept_all": selection.accept_all,
    "greedy_top_k": partial(selection.greedy_top_k, k=5),
    "spec_k": partial(selection.spec_k, k=2),
    "nucleus": partial(selection.nucleus, tau=0.7),
    "hellinger": selection.hellinger,
    "hellinger_gate": partial(selection.hellinger_gate, tau=0.6),
    "entropy_gate": partial(selection.entropy_gate, threshold=2.0),
    "random_gate": partial(selection.random_gate, rate=0.4),
    "inverted": selection.invert(partial(selection.greedy_top_k, k=5)),
}
OBJECTIVE = distill.Objective(losses.reverse_kl, partial(selection.greedy_top_k, k=20), floor=0.1)


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    normal = {
        "student_logits": (B, T, V),
        "teacher_logits": (B, T, V),
        "student_hidden": (B, T, D),
        "teacher_hidden": (B, T, D),
        "student_head": (D, V),
        "teacher_head": (D, V),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in normal.items()}
    return made | {
        "mask": np.arange(T)[None, :] < np.arange(B)[:, None],
        "uniforms": rng.random((B, T)).astype(np.float32),
        "labels": rng.integers(0, V, (B, T)).astype(np.int32),
        "alpha": np.linspace(0, 0.5, B).astype(np.float32),
    }


def place(arrays, name, kind):
    """The arrays on a mesh: rows over data and fsdp, heads by width over fsdp, the vocabulary over tensor."""
    mesh = jax.make_mesh(MESHES[name], AXES, axis_types=kind if isinstance(kind, tuple) else (kind,) * 3)
    specs = dict.fromkeys(arrays, PartitionSpec(ROWS))
    specs |= dict.fromkeys(("student_logits", "teacher_logits"), PartitionSpec(ROWS, None, "tensor"))
    specs |= dict.fromkeys(("student_head", "teacher_head"), PartitionSpec("fsdp", "tensor"))
    return mesh, {key: jax.device_put(value, NamedSharding(mesh, specs[key])) for key, value in arrays.items()}


def assert_close(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1e-6, np.abs(other).max()))


def is_sharded_like(value, array, axes):
    """Whether the leading axes are sharded as those of another array, which explicit axes promise."""
    ours, theirs = (tuple(jax.typeof(leaf).sharding.spec) for leaf in (value, array))
    return (*ours, *[None] * axes)[:axes] == (*theirs, *[None] * axes)[:axes]


@pytest.mark.parametrize("divergence", [*DIVERGENCES, *WITH_LABELS])
def test_every_divergence_and_its_gradient(divergence, kind, arrays):
    def value_and_gradient(q, p, labels):
        def summed(q):
            values = (
                WITH_LABELS[divergence](q, p, labels) if divergence in WITH_LABELS else DIVERGENCES[divergence](q, p)
            )
            return jnp.sum(values), values

        (_, values), gradient = jax.value_and_grad(summed, has_aux=True)(q)
        return values, gradient

    run = jax.jit(value_and_gradient)
    expected = run(*(jnp.asarray(arrays[key]) for key in ("student_logits", "teacher_logits", "labels")))
    mesh, placed = place(arrays, "all", kind)
    with jax.set_mesh(mesh):
        values, gradient = run(placed["student_logits"], placed["teacher_logits"], placed["labels"])
    assert_close((values, gradient), expected)
    if kind == AxisType.Explicit:
        assert is_sharded_like(values, placed["student_logits"], 2)
        assert is_sharded_like(gradient, placed["student_logits"], 3)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_verifier(verifier, kind, arrays):
    run = VERIFIERS[verifier]
    expected = run(jnp.asarray(arrays["student_logits"]), jnp.asarray(arrays["teacher_logits"]))
    mesh, placed = place(arrays, "all", kind)
    with jax.set_mesh(mesh):
        for function in (run, jax.jit(run)):
            found = function(placed["student_logits"], placed["teacher_logits"])
            assert_close(found, expected)
            weights = selection.token_weights(found, placed["uniforms"], floor=0.1)
            assert_close(weights, selection.token_weights(expected, jnp.asarray(arrays["uniforms"]), floor=0.1))


def test_scores_ranking_and_rates(kind, arrays):
    def measure(q, p, labels, mask):
        scores = selection.excess_loss(q, p, labels)
        kept = selection.top_fraction(scores, mask, 0.4)
        accepted = selection.greedy_top_k(q, p, k=20)
        return (
            scores,
            kept,
            selection.error_norm(q, labels),
            selection.target_uncertainty(q, labels),
            selection.acceptance_rate(accepted, mask),
            selection.acceptance_rate_by_sequence(accepted, mask),
            selection.acceptance_rate_by_position(accepted, mask, bins=3, bin_size=2),
            selection.label_in_top_k(q, p, labels, k=9),
            selection.median_split(scores, mask),
        )

    keys = ("student_logits", "teacher_logits", "labels", "mask")
    expected = measure(*(jnp.asarray(arrays[key]) for key in keys))
    mesh, placed = place(arrays, "all", kind)
    with jax.set_mesh(mesh):
        for function in (measure, jax.jit(measure)):
            assert_close(function(*(placed[key] for key in keys)), expected)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("name", ["tensor", "all"])
def test_the_objective(name, chunk_size, kind, arrays):
    def loss(q, p, mask, uniforms, labels, alpha):
        objective = distill.Objective(losses.skew_kl, partial(selection.spec_k, k=2), floor=0.1, label_share=0.2)
        sums = objective(q, p, mask, uniforms, labels, alpha=alpha, chunk_size=chunk_size)
        return sums.mean, sums

    keys = ("student_logits", "teacher_logits", "mask", "uniforms", "labels", "alpha")
    run = jax.value_and_grad(loss, has_aux=True)
    expected = run(*(jnp.asarray(arrays[key]) for key in keys))
    mesh, placed = place(arrays, name, kind)
    with jax.set_mesh(mesh):
        for function in (run, jax.jit(run)):
            assert_close(function(*(placed[key] for key in keys)), expected)


def fused(student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms):
    heads = Head(student_head), Head(teacher_head)
    tokens = Tokens(mask, uniforms)
    sums = distill.fused_head(OBJECTIVE, student_hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=2)
    return sums.mean, sums


FUSED = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "mask", "uniforms")


@pytest.mark.parametrize("name", MESHES)
def test_the_fused_head(name, kind, arrays):
    with_gradient = jax.value_and_grad(fused, (0, 1), has_aux=True)
    plain = [jnp.asarray(arrays[key]) for key in FUSED]
    mesh, placed = place(arrays, name, kind)
    placed = [placed[key] for key in FUSED]
    for run in (fused, with_gradient):
        expected = run(*plain)
        with jax.set_mesh(mesh):
            for function in (run, jax.jit(run)):
                found = function(*placed)
                assert_close(found, expected)
    if kind == AxisType.Explicit:
        (hidden, head) = found[1]
        assert is_sharded_like(hidden, placed[0], 3) and is_sharded_like(head, placed[1], 2)


@pytest.mark.parametrize("explicit", [("data",), ("fsdp",), ("tensor",), ("data", "fsdp"), ("fsdp", "tensor")])
def test_the_fused_head_where_only_some_axes_are_explicit(explicit, arrays):
    with_gradient = jax.value_and_grad(fused, (0, 1), has_aux=True)
    expected = with_gradient(*(jnp.asarray(arrays[key]) for key in FUSED))
    kinds = tuple(AxisType.Explicit if axis in explicit else AxisType.Auto for axis in AXES)
    mesh, placed = place(arrays, "all", kinds)
    placed = [placed[key] for key in FUSED]
    with jax.set_mesh(mesh):
        for function in (with_gradient, jax.jit(with_gradient)):
            found = function(*placed)
            assert_close(found, expected)
            assert is_sharded_like(found[1][0], placed[0], 3) and is_sharded_like(found[1][1], placed[1], 2)


def test_functions_of_logits_from_hidden_states(kind, arrays):
    def measure(student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms):
        heads = Head(student_head), Head(teacher_head)
        return distill.map_logits(losses.forward_kl, student_hidden, heads[0], teacher_hidden, heads[1], mask)

    expected = measure(*(jnp.asarray(arrays[key]) for key in FUSED))
    mesh, placed = place(arrays, "all", kind)
    with jax.set_mesh(mesh):
        for function in (measure, jax.jit(measure)):
            found = function(*(placed[key] for key in FUSED))
            assert_close(found, expected)
    if kind == AxisType.Explicit:
        assert is_sharded_like(found, placed["mask"], 2)


def test_two_streams(kind, arrays):
    pair = distill.TwoStreamObjective(OBJECTIVE, distill.Objective(losses.skew_reverse_kl))

    def loss(student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms):
        streams = [
            distill.HiddenStream(hidden, teacher_hidden, Tokens(mask, uniforms))
            for hidden in (student_hidden, 2.0 * student_hidden)
        ]
        return distill.fused_two_stream(pair, *streams, Head(student_head), Head(teacher_head), balance=0.7).mean

    run = jax.value_and_grad(loss, (0, 1))
    expected = run(*(jnp.asarray(arrays[key]) for key in FUSED))
    mesh, placed = place(arrays, "all", kind)
    with jax.set_mesh(mesh):
        assert_close(jax.jit(run)(*(placed[key] for key in FUSED)), expected)


def test_without_explicit_axes_a_function_is_called_as_it_is(arrays):
    """The decorator leaves no trace in the programs of no mesh and of automatic axes."""
    names = ("student_logits", "teacher_logits")
    bare = losses.forward_kl.__globals__["divergence_from_kernel"].__wrapped__

    def by_decorator(q, p):
        return losses.forward_kl(q, p)

    def undecorated(q, p):
        return bare(losses.forward_kl.__globals__["forward_kernel"], q, p)

    def text(function, *values):
        return jax.jit(function).lower(*values).as_text().replace(function.__name__, "f")

    plain = [jnp.asarray(arrays[key]) for key in names]
    assert text(by_decorator, *plain) == text(undecorated, *plain)
    mesh, placed = place(arrays, "all", AxisType.Auto)
    with jax.set_mesh(mesh):
        on_mesh = [placed[key] for key in names]
        assert text(by_decorator, *on_mesh) == text(undecorated, *on_mesh)
