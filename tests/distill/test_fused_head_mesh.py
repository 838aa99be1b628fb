"""The fused head on eight devices: the same numbers, each device at its own rows, the head's gradient summed once."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax import distill, losses, selection

B, T, DS, DT, V = 8, 6, 4, 12, 4096
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2), "data and fsdp": (2, 4, 1)}
OBJECTIVE = distill.Objective(losses.reverse_kl, partial(selection.greedy_top_k, k=1500), floor=0.1)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    shapes = [(B, T, DS), (DS, V), (B, T, DT), (DT, V)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    # From no valid position in a row to all: devices have different numbers of chunks.
    mask = np.arange(T)[None, :] < np.arange(B)[:, None]
    return (*arrays, mask, rng.random((B, T)).astype(np.float32))


def fused(student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms, **options):
    heads = distill.Head(student_head), distill.Head(teacher_head)
    tokens = distill.Tokens(mask, uniforms)
    return distill.fused_head(OBJECTIVE, student_hidden, heads[0], teacher_hidden, heads[1], tokens, **options)


def loss(student_hidden, student_head, *rest):
    sums = fused(student_hidden, student_head, *rest, chunk_size=2)
    return sums.loss / sums.count, sums


def compiled(name, batch):
    mesh = jax.make_mesh(MESHES[name], ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, head = PartitionSpec(("data", "fsdp")), PartitionSpec(None, "tensor")
    specs = (rows, head, rows, head, rows, rows)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(batch, specs, strict=True)]
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*placed).compile(), placed


def bodies_of_loops(hlo):
    """The text of every computation that runs inside a `while`, however deep."""
    computations = {}
    for block in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ [^\n]*\{\n)", hlo):
        name = re.match(r"(?:ENTRY )?%?([\w.\-]+) ", block)
        if name:
            computations[name[1]] = block
    reached, pending = set(), re.findall(r"body=%?([\w.\-]+)", hlo)
    assert pending
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            called = re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)", computations[name])
            pending += called + re.findall(r"true_computation=%?([\w.\-]+)", computations[name])
    return "\n".join(computations[name] for name in reached)


def collectives(hlo):
    """Kind and number of elements of every array that a collective of the program exchanges."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return [
        (kind, int(np.prod([int(d) for d in dimensions.split(",") if d])))
        for shapes, kind in re.findall(rf"(?m)^ *(?:ROOT )?%?[\w.\-]+ = (.*?) ({kinds})(?:-start)?\(", hlo)
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_equal_one(name, batch):
    (expected_loss, expected_sums), expected = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*batch)
    function, placed = compiled(name, batch)
    (found_loss, sums), gradient = function(*placed)
    np.testing.assert_allclose(found_loss, expected_loss, rtol=1e-6)
    assert float(sums.accepted) == float(expected_sums.accepted) > 0
    for one, other in zip(expected, gradient, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    "name, sums",
    [
        ("data", [("all-reduce", DS * V)]),
        # To the shards of `fsdp`, and only then over `data`.
        ("data and fsdp", [("reduce-scatter", DS * V // 4), ("all-reduce", DS * V // 4)]),
    ],
)
def test_the_head_gradient_is_summed_once_and_never_inside_the_loop(name, sums, batch):
    hlo = compiled(name, batch)[0].as_text()
    assert not collectives(bodies_of_loops(hlo))
    assert [(kind, size) for kind, size in collectives(hlo) if size >= DS * V // 8] == sums


def test_a_sharded_vocabulary_is_never_gathered(batch):
    """Only per-token numbers and hidden states cross devices: nothing with a vocabulary axis."""
    function, _ = compiled("tensor", batch)
    assert 0 < max(size for _, size in collectives(function.as_text())) <= B * T * DT < V // 8 * DS


@pytest.mark.parametrize("name", ["data", "fsdp", "all"])
@pytest.mark.parametrize("vocabulary", [64, 61])
def test_heads_with_biases_and_a_vocabulary_that_does_not_divide(name, vocabulary, batch):
    student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms = batch
    biases = np.random.default_rng(1).normal(size=(2, vocabulary)).astype(np.float32)

    def loss(student_hidden, student_head, student_bias, teacher_hidden, teacher_head, teacher_bias, mask, uniforms):
        heads = distill.Head(student_head, student_bias), distill.Head(teacher_head, teacher_bias)
        tokens = distill.Tokens(mask, uniforms)
        objective = distill.Objective(losses.reverse_kl, partial(selection.greedy_top_k, k=20), floor=0.1)
        return distill.fused_head(
            objective, student_hidden, heads[0], teacher_hidden, heads[1], tokens, chunk_size=2
        ).mean

    heads = student_head[:, :vocabulary], teacher_head[:, :vocabulary]
    arrays = (student_hidden, heads[0], biases[0], teacher_hidden, heads[1], biases[1], mask, uniforms)
    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    expected, expected_gradient = run(*arrays)
    rows, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()
    specs = (rows, whole, whole, rows, whole, whole, rows, rows)
    mesh = jax.make_mesh(MESHES[name], ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
        found, gradient = run(*placed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(expected_gradient, gradient, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=0, atol=1e-5 * np.abs(one).max())


def test_a_batch_that_does_not_divide_is_refused(batch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="a batch of 6 rows does not divide over the 8 devices"):
        loss(*(a[:6] if a.shape[0] == B else a for a in map(jnp.asarray, batch)))


def test_heads_of_two_widths_move_columns_once_and_not_in_the_loop(batch):
    """Sharded over `tensor`, column v of one is on another device than that of the other."""
    student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms = batch
    wider = np.concatenate([teacher_head, np.ones((DT, 64), np.float32)], axis=1)

    def loss(student_hidden, student_head, *rest):
        sums = fused(student_hidden, student_head, *rest, vocab_size=V - 5, chunk_size=2)
        return sums.loss / sums.count

    arrays = (student_hidden, student_head, teacher_hidden, wider, mask, uniforms)
    function = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected, expected_gradient = function(*arrays)
    mesh = jax.make_mesh(MESHES["all"], ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, head = PartitionSpec(("data", "fsdp")), PartitionSpec(None, "tensor")
    with jax.set_mesh(mesh):
        specs = (rows, head, rows, head, rows, rows)
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
        compiled = function.lower(*placed).compile()
        found, gradient = compiled(*placed)
    inside = collectives(bodies_of_loops(compiled.as_text()))
    # What a sharded vocabulary exchanges in a chunk of 2: numbers and hidden states of its positions.
    assert max(size for _, size in inside) <= 2 * DT
    assert not [kind for kind, _ in inside if kind == "collective-permute"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(expected_gradient, gradient, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("manual", [("data", "fsdp", "tensor"), ("data", "fsdp"), ("data",)])
@pytest.mark.parametrize("skip_rejected", [False, True])
def test_within_a_shard_map_of_the_caller(manual, check_vma, skip_rejected, batch):
    """Over all axes or some, which leaves the others to the fused head; the head is the same on every device."""
    objective = distill.Objective(losses.adaptive_kl, partial(selection.greedy_top_k, k=20), floor=0.0)

    def loss(student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms):
        heads = distill.Head(student_head[:, :61]), distill.Head(teacher_head[:, :61])
        tokens = distill.Tokens(mask, uniforms)
        options = {"chunk_size": 2, "skip_rejected": skip_rejected}
        return distill.fused_head(objective, student_hidden, heads[0], teacher_hidden, heads[1], tokens, **options).loss

    with_gradient = jax.value_and_grad(loss, (0, 1))
    axes = tuple(axis for axis in ("data", "fsdp") if axis in manual)

    def local(*arrays):
        value, (to_hidden, to_head) = with_gradient(*arrays)
        # Where types say that the head is the same everywhere, JAX sums its gradient.
        return jax.lax.psum(value, axes), to_hidden, to_head if check_vma else jax.lax.psum(to_head, axes)

    mesh = jax.make_mesh(MESHES["all"], ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    specs = {"in_specs": (rows, whole, rows, whole, rows, rows), "out_specs": (whole, rows, whole)}
    with jax.set_mesh(mesh):
        run = jax.jit(jax.shard_map(local, mesh=mesh, axis_names=set(manual), check_vma=check_vma, **specs))
        value, *gradient = run(*batch)
    expected, expected_gradient = jax.jit(with_gradient)(*batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for one, other in zip(expected_gradient, gradient, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=0, atol=1e-5 * np.abs(one).max())


def test_functions_of_logits_and_chunks_within_a_shard_map(batch):
    student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms = batch
    student_head, teacher_head = student_head[:, :61], teacher_head[:, :61]

    def divergences(student_hidden, student_head, teacher_hidden, teacher_head, mask):
        heads = distill.Head(student_head), distill.Head(teacher_head)
        function = partial(losses.skew_kl, alpha=0.1)
        return distill.map_logits(function, student_hidden, heads[0], teacher_hidden, heads[1], mask, chunk_size=2)

    def gradient(student_hidden, student_head, teacher_hidden, teacher_head, mask):
        """Also to what is the same everywhere: the head."""

        def loss(student_head):
            logits = student_hidden @ student_head, teacher_hidden @ teacher_head
            return distill.Objective(losses.skew_kl)(*logits, mask, chunk_size=4).loss

        return jax.grad(loss)(student_head)

    arrays = (student_hidden, student_head, teacher_hidden, teacher_head, mask)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    for function, out in ((divergences, rows), (gradient, whole)):
        run = jax.shard_map(function, mesh=mesh, in_specs=(rows, whole, rows, whole, rows), out_specs=out)
        expected = np.asarray(jax.jit(function)(*arrays))
        np.testing.assert_allclose(jax.jit(run)(*arrays), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_chunks_of_student_logits_that_all_devices_of_a_shard_map_share():
    """One row of the student against eight of the teacher, a row each: the gradient is the sum over devices."""
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(1, T, 11)).astype(np.float32), rng.normal(size=(8, T, 11)).astype(np.float32)
    objective = distill.Objective(losses.skew_kl, normalizer="token")

    def gradient(student, teacher):
        def loss(student):
            repeated = jnp.broadcast_to(student, teacher.shape)
            return objective(repeated, teacher, jnp.ones(teacher.shape[:2], bool), chunk_size=4).loss

        return jax.grad(loss)(student)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("data")
    run = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, rows), out_specs=whole)
    expected = np.asarray(jax.jit(gradient)(student, teacher))
    np.testing.assert_allclose(jax.jit(run)(student, teacher), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
