"""A table: what of JAX's transforms works on what of the core, and that it gives the numbers of the plain function.

Every function here is a sum over rows, so that mapped, scanned and sharded over rows it has to add up to itself. Logits
have excluded tokens, where a derivative most easily turns into NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax import distill, losses, selection

B, T, V = 4, 3, 7
GATED = distill.Objective(losses.hellinger, partial(selection.greedy_top_k, k=2), floor=0.1, normalizer="token")


def of_divergence(divergence, student, rows):
    return jnp.sum(divergence(exclude(student), exclude(rows["teacher"])))


def of_labels(loss, student, rows):
    return jnp.sum(loss(exclude(student), exclude(rows["teacher"]), rows["labels"]))


def of_verifier(verifier, student, rows):
    # A weight, as an objective uses it: constant, but for the square beside it.
    weight = verifier(exclude(student), exclude(rows["teacher"]))
    return jnp.sum(weight.astype(student.dtype) * jnp.sum(student**2, axis=-1))


def of_objective(student, rows, *, chunk_size=None):
    options = {"mask": rows["mask"], "uniforms": rows["uniforms"], "chunk_size": chunk_size}
    return GATED(exclude(student), exclude(rows["teacher"]), **options).loss


def of_fused_head(student, rows):
    tokens = distill.Tokens(rows["mask"], rows["uniforms"])
    heads = (distill.Head(HEAD.astype(student.dtype), BIAS.astype(student.dtype)) for _ in range(2))
    student_head, teacher_head = heads
    return distill.fused_head(
        GATED, student, student_head, rows["teacher"], teacher_head, tokens, vocab_size=V - 2, chunk_size=2
    ).loss


def exclude(logits):
    """The last two tokens have probability 0."""
    return distill.mask_vocabulary(logits, V - 2)


HEAD = jnp.asarray(np.random.default_rng(5).normal(size=(V, V)), jnp.float32)
BIAS = jnp.linspace(-1, 1, V)
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": losses.skew_kl,
    "detached skew_reverse_kl": partial(losses.skew_reverse_kl, detach_mixture=True),
    "jensen_shannon": losses.jensen_shannon,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "adaptive_kl": losses.adaptive_kl,
}
WITH_LABELS = {
    "decoupled_kl": losses.decoupled_kl,
    "cross_entropy": lambda student, _, labels: losses.cross_entropy(student, labels),
}
VERIFIERS = {
    "greedy_top_k": partial(selection.greedy_top_k, k=2),
    "spec_k": partial(selection.spec_k, k=2),
    "hellinger_gate": partial(selection.hellinger_gate, tau=0.4),
    "entropy_gate": partial(selection.entropy_gate, threshold=1.2),
}
FUNCTIONS = {
    **{name: partial(of_divergence, divergence) for name, divergence in DIVERGENCES.items()},
    **{name: partial(of_labels, loss) for name, loss in WITH_LABELS.items()},
    **{name: partial(of_verifier, verifier) for name, verifier in VERIFIERS.items()},
    "objective": of_objective,
    "chunked objective": partial(of_objective, chunk_size=2),
    "fused_head": of_fused_head,
}
# Their gradient is taken in the forward sweep: JAX refuses what would differentiate it again, and forward mode.
REFUSED = {
    ("chunked objective", "jvp"): "custom_vjp",
    ("fused_head", "jvp"): "custom_vjp",
    ("fused_head", "value of value_and_grad"): "Reverse-mode",
}
FIRST_ORDER = {"chunked objective", "fused_head"}
# What is held constant to differentiation moves with the logits in a difference quotient.
STOPPED = {"detached skew_reverse_kl", "adaptive_kl", "spec_k"}


def make_rows(dtype=np.float32):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, B, T, V)).astype(dtype)
    mask = np.arange(T)[None, :] < np.array([3, 1, 0, 2])[:, None]
    uniforms = rng.random((B, T)).astype(np.float32)
    rows = {"teacher": teacher, "mask": mask, "uniforms": uniforms, "labels": rng.integers(0, V - 2, (B, T))}
    return jnp.asarray(student), jax.tree.map(jnp.asarray, rows)


def value_and_gradient(function, student, rows):
    return jax.value_and_grad(function)(student, rows)


def one_row(values):
    return jax.tree.map(lambda leaf: leaf[:, None], values)


def by_vmap(function, student, rows):
    values, gradients = jax.vmap(partial(value_and_gradient, function))(*one_row((student, rows)))
    return jnp.sum(values), gradients[:, 0]


def by_scan(function, student, rows):
    def summed(student):
        def add(total, row):
            return total + function(*row), None

        return jax.lax.scan(add, jnp.zeros(()), one_row((student, rows)))[0]

    return jax.value_and_grad(summed)(student)


def by_checkpoint(function, student, rows):
    return value_and_gradient(jax.checkpoint(function), student, rows)


def by_cond(function, student, rows):
    def either(student, rows):
        return jax.lax.cond(rows["mask"][0, 0], function, lambda *_: jnp.zeros(()), student, rows)

    return value_and_gradient(either, student, rows)


def by_jvp(function, student, rows):
    """One tangent for each entry: forward mode."""
    basis = jnp.eye(student.size).reshape(-1, *student.shape)
    value, push = jax.linearize(lambda student: function(student, rows), student)
    return value, jax.vmap(push)(basis).reshape(student.shape)


def by_value_of_gradient(function, student, rows):
    """The value that comes with a gradient has that gradient, too."""
    return value_and_gradient(lambda *inputs: jax.value_and_grad(function)(*inputs)[0], student, rows)


def by_shard_map(function, student, rows, *, check_vma):
    def local(student, rows):
        value, gradient = value_and_gradient(function, student, rows)
        return jax.lax.psum(value, "data"), gradient

    by_rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = two_devices(AxisType.Auto)
    specs = {"in_specs": (by_rows, by_rows), "out_specs": (whole, by_rows)}
    return jax.shard_map(local, mesh=mesh, check_vma=check_vma, **specs)(student, rows)


def by_mesh(function, student, rows, *, kind):
    mesh = two_devices(kind)
    student, rows = jax.device_put((student, rows), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        return jax.jit(partial(value_and_gradient, function))(student, rows)


def two_devices(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


TRANSFORMS = {
    "vmap": by_vmap,
    "scan": by_scan,
    "checkpoint": by_checkpoint,
    "cond": by_cond,
    "jvp": by_jvp,
    "value of value_and_grad": by_value_of_gradient,
    "shard_map": partial(by_shard_map, check_vma=True),
    "shard_map unchecked": partial(by_shard_map, check_vma=False),
    "Auto": partial(by_mesh, kind=AxisType.Auto),
    "Explicit": partial(by_mesh, kind=AxisType.Explicit),
}


@pytest.fixture(scope="module", params=FUNCTIONS)
def row(request):
    """A function's name, the function, and its value and gradient without any transform but `jit`."""
    function = FUNCTIONS[request.param]
    return request.param, function, jax.jit(partial(value_and_gradient, function))(*make_rows())


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_gives_the_numbers_of_the_plain_function(transform, row):
    name, function, expected = row
    run = partial(TRANSFORMS[transform], function)
    if (name, transform) in REFUSED:
        with pytest.raises((TypeError, ValueError), match=REFUSED[name, transform]):
            jax.eval_shape(run, *make_rows())
        return
    if transform not in ("Auto", "Explicit"):
        run = jax.jit(run)
    for found, wanted in zip(run(*make_rows()), expected, strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_the_slope_and_the_hessian_the_slope_of_the_gradient(row):
    """Central differences in float64 along one direction; where a part is held constant, only that all is finite."""
    name, function, _ = row
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        student, rows = make_rows(np.float64)
        direction = jnp.asarray(np.random.default_rng(1).normal(size=student.shape))
        gradient = jax.jit(jax.grad(function))

        def slope(function):
            step = 1e-5 * direction
            return (np.asarray(function(student + step, rows)) - np.asarray(function(student - step, rows))) / 2e-5

        found = np.vdot(gradient(student, rows), direction)
        if name not in STOPPED:
            np.testing.assert_allclose(found, slope(jax.jit(function)), rtol=1e-5)
        if name in FIRST_ORDER:
            return
        product = jax.jit(lambda z: jax.jvp(lambda z: gradient(z, rows), (z,), (direction,))[1])(student)
        assert np.all(np.isfinite(product))
        if name not in STOPPED:
            np.testing.assert_allclose(product, slope(gradient), rtol=1e-4, atol=1e-7)
