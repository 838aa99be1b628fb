"""Ten steps on eight devices, arranged and sharded in every way, against the same ten on one device."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from selecttkd_jax import losses, models, selection, training
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import Objective
from selecttkd_jax.sharding import PRESETS, MeshConfig, make_mesh, place_batch
from selecttkd_jax.training import (
    Frozen,
    OneStream,
    OptimizerConfig,
    init_state,
    make_optimizer,
    make_train_step,
    state_shardings,
)

TEACHER = models.DecoderConfig(
    vocab_size=48,
    hidden_size=24,
    mlp_size=40,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    qkv_bias=True,
    init_scale=0.4,
)
# Over four devices neither the student's key heads nor its vocabulary divide: those stay whole, and the head is padded.
STUDENT = replace(
    TEACHER,
    vocab_size=46,
    hidden_size=16,
    mlp_size=24,
    num_layers=2,
    num_kv_heads=2,
    tied_head=True,
    qk_norm=True,
)
OBJECTIVE = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.spec_k, k=2), floor=0.1)
STEPS, ROWS, LENGTH = 10, 16, 11
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=5e-3, weight_decay=0.1), STEPS)

pytestmark = pytest.mark.usefixtures("lenient_promotion")


@pytest.fixture(scope="module")
def weights():
    """On the host, as they would be in a file."""
    params = models.init_params(STUDENT, jax.random.key(2)), models.init_params(TEACHER, jax.random.key(1))
    return jax.tree.map(np.array, params)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        ids = rng.integers(0, 45, (ROWS, LENGTH)).astype(np.int32)
        real = np.arange(LENGTH)[None, :] < rng.integers(2, LENGTH + 1, ROWS)[:, None]
        positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
        mask = real & (np.arange(LENGTH)[None, :] >= 2)
        made.append(Batch(ids, np.roll(ids, -1, axis=1), mask, positions, real.astype(np.int32)))
    return made


def run(weights, batches, mesh_config, devices, **options):
    """The ten losses and gradient norms, the last state, and where student and teacher were put."""
    mesh = make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh):
        student_shardings = models.shardings(STUDENT, mesh, PRESETS[mesh_config.student])
        teacher_shardings = models.shardings(TEACHER, mesh, PRESETS[mesh_config.teacher])
        student, teacher = jax.device_put(weights, (student_shardings, teacher_shardings))
        state = init_state(student, OPTIMIZER, seed=3)
        pair = training.Pair(STUDENT, TEACHER, vocab_size=45)
        step = make_train_step(
            OneStream(pair, OBJECTIVE), OPTIMIZER, shardings=state_shardings(student, OPTIMIZER), **options
        )
        numbers = []
        for batch in batches:
            state, metrics = step(state, Frozen(teacher), place_batch(mesh, batch, ROWS))
            numbers.append([float(metrics["sums"].loss / metrics["sums"].count), float(metrics["grad_norm"])])
    return np.array(numbers), state, student_shardings


@pytest.fixture(scope="module")
def alone(weights, batches):
    with jax.numpy_dtype_promotion("standard"):
        return run(weights, batches, MeshConfig(), jax.devices()[:1])


CASES = {
    "replicated": MeshConfig(data=8, student="replicated", teacher="replicated"),
    "fsdp": MeshConfig(data=2, fsdp=4, student="fsdp", teacher="fsdp"),
    "tensor": MeshConfig(data=2, tensor=4, student="tensor", teacher="tensor"),
    "fsdp and tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "all on fsdp": MeshConfig(fsdp=-1),
    "rules of their own": MeshConfig(fsdp=4, tensor=2, student="tensor", teacher="fsdp+tensor"),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_one_device(weights, batches, alone, name):
    options = {"micro_batches": 2} if name in ("fsdp", "rules of their own") else {}
    numbers, state, shardings = run(weights, batches, CASES[name], jax.devices(), **options)
    np.testing.assert_allclose(numbers[:, 0], alone[0][:, 0], rtol=1e-5)
    np.testing.assert_allclose(numbers[:, 1], alone[0][:, 1], rtol=1e-4)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max() > 0.01, state.params, weights[0])
    assert all(jax.tree.leaves(moved))
    for moments in (state.params, state.opt_state[1][0].mu, state.opt_state[1][0].nu):
        jax.tree.map(lambda leaf, sharding: _assert_placed(leaf, sharding), moments, shardings)


def _assert_placed(leaf, sharding):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (leaf.sharding, sharding)
    shape = tuple(
        size // (1 if axis is None else sharding.mesh.shape[axis])
        for size, axis in zip(leaf.shape, sharding.spec, strict=True)
    )
    assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}
