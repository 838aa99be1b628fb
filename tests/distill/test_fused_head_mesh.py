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


def loss(student_hidden, student_head, *rest):
    sums = distill.fused_head(OBJECTIVE, student_hidden, student_head, *rest, chunk_size=2)
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
        # To where the weights would lie over `fsdp`, and only then over `data`.
        ("data and fsdp", [("reduce-scatter", DS * V // 4), ("all-reduce", DS * V // 4)]),
    ],
)
def test_the_head_gradient_is_summed_once_and_never_inside_the_loop(name, sums, batch):
    hlo = compiled(name, batch)[0].as_text()
    assert not collectives(bodies_of_loops(hlo))
    assert [(kind, size) for kind, size in collectives(hlo) if size >= DS * V // 8] == sums


def test_a_divided_vocabulary_is_never_gathered(batch):
    """Only per-token numbers and hidden states cross devices: nothing with a vocabulary axis."""
    function, _ = compiled("tensor", batch)
    assert 0 < max(size for _, size in collectives(function.as_text())) <= B * T * DT < V // 8 * DS


def test_a_batch_that_does_not_divide_is_refused(batch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="a batch of 6 rows does not divide over the 8 devices"):
        loss(*(a[:6] if a.shape[0] == B else a for a in map(jnp.asarray, batch)))


def test_heads_of_two_widths_move_columns_once_and_not_in_the_loop(batch):
    """Divided over `tensor`, column v of one lies on another device than that of the other."""
    student_hidden, student_head, teacher_hidden, teacher_head, mask, uniforms = batch
    wider = np.concatenate([teacher_head, np.ones((DT, 64), np.float32)], axis=1)

    def loss(student_hidden, student_head, *rest):
        sums = distill.fused_head(OBJECTIVE, student_hidden, student_head, *rest, vocab_size=V - 5, chunk_size=2)
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
    # What a divided vocabulary exchanges in a chunk of 2: numbers and hidden states of its positions.
    assert max(size for _, size in inside) <= 2 * DT
    assert not [kind for kind, _ in inside if kind == "collective-permute"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(expected_gradient, gradient, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=0, atol=1e-5 * np.abs(one).max())
