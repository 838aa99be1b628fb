"""A vocabulary sharded over eight devices: same values, and no device ever sees a whole row of logits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax import distill, losses, selection

B, T, V = 2, 3, 4096
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": losses.skew_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "adaptive_kl": losses.adaptive_kl,
    "teacher_top_k_kl": losses.teacher_top_k_kl,
    "soft_cross_entropy": losses.soft_cross_entropy,
    "decoupled_kl": losses.decoupled_kl,
    "cross_entropy": losses.cross_entropy,
    "hard_cross_entropy": lambda q, p, labels: losses.hard_cross_entropy(q, p, jnp.where(labels % 2 == 0, -1, labels)),
}
VERIFIERS = {
    "greedy_top_k": selection.greedy_top_k,
    "spec_k": selection.spec_k,
    "hellinger_gate": selection.hellinger_gate,
    "entropy_gate": partial(selection.entropy_gate, threshold=5.0),
    "label_in_top_k": selection.label_in_top_k,
    "spec_label": selection.spec_label,
    "nucleus": selection.nucleus,
}
CASES = [(d, "accept_all") for d in DIVERGENCES] + [("forward_kl", v) for v in VERIFIERS]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 4, (B, T, V)).astype(np.float32)
    student = (teacher + rng.normal(0, 1, (B, T, V))).astype(np.float32)
    return student, teacher, np.ones((B, T), bool), rng.integers(0, V, (B, T)).astype(np.int32)


def gathered_sizes(hlo):
    """Number of elements in the result of every all-gather and all-to-all of a compiled program."""
    sizes = []
    for result in re.findall(r"= (.*?) (?:all-gather|all-to-all|all-gather-start)\(", hlo):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", result):
            sizes.append(int(np.prod([int(d) for d in dimensions.split(",") if d])))
    return sizes


def compiled(objective, mesh, batch):
    student, teacher, mask, labels = batch
    rows, whole = NamedSharding(mesh, PartitionSpec(None, None, "tensor")), NamedSharding(mesh, PartitionSpec())

    def loss_and_gradient(q, p):
        def loss(z):
            sums = objective(z, p, mask, labels=labels)
            return sums.loss, sums.accepted

        return jax.value_and_grad(loss, has_aux=True)(q)

    step = jax.jit(loss_and_gradient, in_shardings=(rows, rows), out_shardings=((whole, whole), rows))
    return step, step.lower(student, teacher).compile()


@pytest.mark.parametrize(("divergence", "verifier"), CASES)
def test_same_values_and_no_gather_of_the_vocabulary(batch, divergence, verifier):
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    objective = distill.Objective(DIVERGENCES[divergence], {"accept_all": selection.accept_all, **VERIFIERS}[verifier])
    step, program = compiled(objective, mesh, batch)
    hlo = program.as_text()
    assert "all-reduce" in hlo  # it did run sharded
    assert max(gathered_sizes(hlo), default=0) < V // 8, "a device gathers logits"

    student, teacher, mask, labels = batch
    (loss, accepted), gradient = step(student, teacher)
    plain = objective(student, teacher, mask, labels=labels)
    np.testing.assert_allclose(loss, plain.loss, rtol=1e-5)
    np.testing.assert_allclose(accepted, plain.accepted, rtol=1e-5)
    wanted = jax.grad(lambda z: objective(z, teacher, mask, labels=labels).loss)(student)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_the_detector_sees_a_gather(batch):
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    objective = distill.Objective(lambda q, p: jnp.sort(q - p, axis=-1)[..., -1])
    _, program = compiled(objective, mesh, batch)
    assert max(gathered_sizes(program.as_text()), default=0) >= V // 8
