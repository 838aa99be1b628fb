"""The training step on adapters: what moves, along which gradient, and what stays."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax import losses, models, selection, training
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import Objective
from selecttkd_jax.training import Frozen, OneStream, init_state, make_train_step

STUDENT = models.DecoderConfig(
    vocab_size=29,
    hidden_size=10,
    mlp_size=13,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    qkv_bias=True,
    tied_head=True,
    init_scale=0.4,
)
LORA = models.LoraConfig(rank=2, alpha=3.0)
PAIR = training.Pair(student=STUDENT, teacher=STUDENT, vocab_size=23, lora=LORA)
OBJECTIVE = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=2), floor=0.1)


@pytest.fixture(scope="module")
def parts():
    """Teacher, frozen weights, adapters with a branch that is not zero, and a batch."""
    teacher, base = (models.init_params(STUDENT, jax.random.key(seed)) for seed in (1, 2))
    lora = models.init_lora(LORA, STUDENT, base, jax.random.key(3))
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), lora)
    ids = rng.integers(0, 23, (4, 7)).astype(np.int32)
    mask = np.arange(7)[None, :] < np.array([[7], [3], [5], [6]])
    positions = np.tile(np.arange(7, dtype=np.int32), (4, 1))
    return teacher, base, lora, Batch(ids, np.roll(ids, -1, axis=1), mask, positions, mask.astype(np.int32))


def take(parts, **options):
    teacher, base, lora, batch = parts
    optimizer = optax.sgd(1.0)
    step = make_train_step(OneStream(PAIR, OBJECTIVE), optimizer, **options)
    return step(init_state(lora, optimizer, seed=3), Frozen(teacher, base), batch)


def test_only_adapters_move_and_they_follow_the_gradient_through_the_merged_weights(parts):
    teacher, base, lora, batch = parts
    before = jax.tree.map(np.array, (teacher, base))

    def loss(lora):
        merged = models.merge_lora(base, lora, LORA)
        hidden, _ = models.forward(STUDENT, merged, batch.input_ids, batch.positions, batch.segment_ids)
        zq = models.head_logits(STUDENT, merged, hidden)[..., :23]
        hidden, _ = models.forward(STUDENT, teacher, batch.input_ids, batch.positions, batch.segment_ids)
        zp = models.head_logits(STUDENT, teacher, hidden)[..., :23]
        weighted = jnp.where(selection.greedy_top_k(zq, zp, k=2) > 0, 1.0, 0.1) * losses.skew_kl(zq, zp, alpha=0.1)
        return sum(weighted[b][batch.loss_mask[b]].mean() for b in range(4)) / 4

    gradient = jax.jit(jax.grad(loss))(lora)
    state, metrics = take(parts)
    expected = jax.tree.map(lambda leaf, slope: leaf - slope, lora, gradient)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-4, atol=1e-6)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    chex.assert_trees_all_equal((teacher, base), before)


def test_micro_batches_of_a_frozen_bfloat16_base_take_the_same_step(parts):
    teacher, base, lora, batch = parts
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    whole, _ = take((teacher, low, lora, batch))
    cut, _ = take((teacher, low, lora, batch), micro_batches=4)
    chex.assert_trees_all_close(cut.params, whole.params, rtol=1e-5, atol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(whole.params))
