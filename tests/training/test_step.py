from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from selecttkd_jax import losses, models, selection, training
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import Objective
from selecttkd_jax.training import Frozen, OneStream, init_state, make_train_step

TEACHER = models.DecoderConfig(
    vocab_size=31,
    hidden_size=14,
    mlp_size=19,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    tied_head=True,
    init_scale=0.4,
)
STUDENT = models.DecoderConfig(
    vocab_size=29,
    hidden_size=10,
    mlp_size=13,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    tied_head=True,
    init_scale=0.4,
)
PAIR = training.Pair(student=STUDENT, teacher=TEACHER, vocab_size=23)
OBJECTIVE = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.spec_k, k=2), floor=0.1)


@pytest.fixture(scope="module")
def teacher():
    return models.init_params(TEACHER, jax.random.key(1))


@pytest.fixture(scope="module")
def student():
    return models.init_params(STUDENT, jax.random.key(2))


@pytest.fixture(scope="module")
def batch():
    """Eight rows of uneven lengths, one of them without any loss."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 23, (8, 11)).astype(np.int32)
    lengths = np.array([11, 7, 3, 9, 5, 11, 2, 8])
    real = np.arange(11)[None, :] < lengths[:, None]
    mask = real & (np.arange(11)[None, :] >= 2)
    mask[4] = False
    positions = np.tile(np.arange(11, dtype=np.int32), (8, 1))
    return Batch(ids, np.roll(ids, -1, axis=1), mask, positions, real.astype(np.int32))


def take(batch, student, teacher, **options):
    # Plain gradient descent: what the optimizer does to a gradient must not hide a difference in it.
    optimizer = optax.sgd(1.0)
    step = make_train_step(OneStream(PAIR, OBJECTIVE), optimizer, **options)
    return step(init_state(student, optimizer, seed=3), Frozen(teacher), batch)


def test_micro_batches_take_the_same_step_as_the_whole_batch(batch, student, teacher):
    whole, whole_metrics = take(batch, student, teacher)
    for micro_batches in (2, 8):
        parts, parts_metrics = take(batch, student, teacher, micro_batches=micro_batches)
        chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(parts_metrics, whole_metrics, rtol=1e-5)
    assert float(whole_metrics["sums"].sequences) == 6  # one row is masked, one too short


def test_eight_devices_take_the_same_step_as_one(batch, student, teacher):
    whole, whole_metrics = take(batch, student, teacher)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        sharded, metrics = take(spread, *jax.device_put((student, teacher), NamedSharding(mesh, PartitionSpec())))
    chex.assert_trees_all_close(sharded.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-5)


def test_the_step_follows_the_gradient_of_the_mean_over_sequences(batch, student, teacher):
    uniforms = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0), (8, 11))

    def loss(params):
        hidden, _ = models.forward(STUDENT, params, batch.input_ids, batch.positions, batch.segment_ids)
        zq = models.head_logits(STUDENT, params, hidden)[..., :23]
        hidden, _ = models.forward(TEACHER, teacher, batch.input_ids, batch.positions, batch.segment_ids)
        zp = models.head_logits(TEACHER, teacher, hidden)[..., :23]
        accepted = uniforms < selection.spec_k(zq, zp, k=2)
        weighted = jnp.where(accepted, 1.0, 0.1) * losses.skew_kl(zq, zp, alpha=0.1)
        rows = [weighted[b][batch.loss_mask[b]].mean() for b in range(8) if batch.loss_mask[b].any()]
        return sum(rows) / len(rows)

    value, grads = jax.value_and_grad(loss)(student)
    state, metrics = take(batch, student, teacher)
    chex.assert_trees_all_close(state.params, jax.tree.map(lambda p, g: p - g, student, grads), rtol=1e-4, atol=1e-6)
    assert float(metrics["sums"].loss / metrics["sums"].count) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)


def test_the_expected_gate_draws_nothing(batch, student, teacher):
    """Two seeds, one step: the weight is the acceptance itself."""
    optimizer = optax.sgd(1.0)
    step = make_train_step(OneStream(PAIR, OBJECTIVE, expected=True), optimizer, micro_batches=2)
    first, metrics = step(init_state(student, optimizer, seed=3), Frozen(teacher), batch)
    second, _ = step(init_state(student, optimizer, seed=4), Frozen(teacher), batch)
    chex.assert_trees_all_equal(first.params, second.params)
    zq, zp = PAIR.logits(student, teacher, batch)
    acceptance = np.asarray(selection.spec_k(zq, zp, k=2))[batch.loss_mask]
    assert float(metrics["sums"].weight) == pytest.approx(float((0.1 + 0.9 * acceptance).sum()), rel=1e-5)


def test_every_student_parameter_moves_and_the_teacher_stays(batch, student, teacher):
    before = jax.tree.map(np.asarray, teacher)
    state, _ = take(batch, student, teacher)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(student), jax.tree.leaves(state.params), strict=True
    ):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)
    chex.assert_trees_all_equal(teacher, before)
    assert int(state.step) == 1


def test_an_all_masked_batch_changes_nothing(batch, student, teacher):
    empty = Batch(batch.input_ids, batch.labels, np.zeros_like(batch.loss_mask), batch.positions, batch.segment_ids)
    state, metrics = take(empty, student, teacher)
    chex.assert_trees_all_equal(state.params, student)
    assert float(metrics["sums"].loss) == 0 and float(metrics["grad_norm"]) == 0


def test_bfloat16_compute_keeps_float32_masters(batch, student, teacher):
    pair = training.Pair(student=STUDENT, teacher=TEACHER, vocab_size=23, dtype="bfloat16", remat="full")
    optimizer = optax.sgd(1e-3)
    step = make_train_step(OneStream(pair, OBJECTIVE), optimizer)
    state, metrics = step(
        init_state(student, optimizer, 3), Frozen(jax.tree.map(lambda p: p.astype(jnp.bfloat16), teacher)), batch
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    full, full_metrics = take(batch, student, teacher)
    assert float(metrics["sums"].divergence) == pytest.approx(float(full_metrics["sums"].divergence), rel=0.05)


def test_options_of_the_compiler_reach_it(batch, student, teacher):
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_nonsense'"):
        take(batch, student, teacher, compiler_options={"xla_nonsense": True})


def test_micro_batches_that_do_not_divide_are_refused(batch, student, teacher):
    with pytest.raises(InputError, match="8 rows cannot be cut into 3"):
        take(batch, student, teacher, micro_batches=3)
