"""Packed rows take the step that they take one by one: losses, gradients and rates, for every normaliser."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax import data, losses, methods, models, selection, training
from selecttkd_jax.data import Rows
from selecttkd_jax.distill import Objective, ObjectiveConfig
from selecttkd_jax.sharding import PRESETS, MeshConfig, make_mesh, place_batch
from selecttkd_jax.sources import Unread
from selecttkd_jax.training import Frozen, OneStream, init_state, make_train_step, state_shardings

TEACHER = models.DecoderConfig(
    vocab_size=31,
    hidden_size=14,
    mlp_size=20,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    tied_head=True,
    init_scale=0.4,
)
STUDENT = replace(TEACHER, vocab_size=29, hidden_size=10, mlp_size=14, num_layers=1)
LORA = models.LoraConfig(rank=2, alpha=3.0)
PAIR = training.Pair(student=STUDENT, teacher=TEACHER, vocab_size=23)
OBJECTIVE = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=4), floor=0.1)
LENGTH, SEQUENCES = 24, 4
OPTIMIZER = optax.sgd(1.0)  # what an optimizer does to a gradient must not hide a difference in it

pytestmark = pytest.mark.usefixtures("lenient_promotion")


@pytest.fixture(scope="module")
def weights():
    """On the host, where no step can give them up."""
    params = models.init_params(STUDENT, jax.random.key(2)), models.init_params(TEACHER, jax.random.key(1))
    return jax.tree.map(np.array, params)


@pytest.fixture(scope="module")
def batches():
    """The same rows, a row in each sequence and packed; one of them carries no loss."""
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(0, 23, count).astype(np.int32) for count in (24, 13, 11, 9, 6, 5, 4, 8, 7, 2))
    response = [np.arange(len(row)) >= max(1, len(row) // 3) for row in tokens]
    response[4][:] = False
    rows = Rows(tokens, tuple(response), LENGTH, read=len(tokens))
    (alone,) = data.eval_batches(rows, 12, LENGTH)
    packed = next(data.pack_batches(rows, SEQUENCES, LENGTH, seed=0))
    assert sum(segments.max() for segments in packed.segment_ids) == 10  # all of them, in four sequences
    return alone, packed


def take(batch, weights, objective=OBJECTIVE, *, packed, micro_batches=1, loss=None):
    student, teacher = jax.tree.map(jnp.asarray, weights)
    loss = loss or OneStream(PAIR, objective, packed=packed)
    step = make_train_step(loss, OPTIMIZER, micro_batches=micro_batches)
    state, metrics = step(init_state(student, OPTIMIZER, seed=3), Frozen(teacher), batch)
    return state.params, metrics["sums"]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("normalizer", ["sequence", "token", "weight"])
def test_packed_rows_take_the_step_of_the_same_rows_alone(batches, weights, normalizer, micro_batches):
    alone, packed = batches
    objective = replace(OBJECTIVE, normalizer=normalizer)
    expected = take(alone, weights, objective, packed=False)
    found = take(packed, weights, objective, packed=True, micro_batches=micro_batches)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float(found[1].sequences) == 9 and 0 < float(found[1].accepted) < float(found[1].tokens)
    if normalizer == "sequence":
        # A row of a sequence taken for the whole of it would be divided by too much.
        wrong = take(packed, weights, objective, packed=False)
        assert abs(float(wrong[1].mean - expected[1].mean)) > 1e-3


@pytest.mark.parametrize("method", [methods.Sft(), methods.SeqKd()], ids=lambda method: method.name)
def test_cross_entropy_on_packed_rows(batches, weights, method):
    """The loss is that of the method, since it is the one who says that rows are packed."""
    stored, mesh = Unread(data.batch_shapes(SEQUENCES, LENGTH)), make_mesh(MeshConfig())
    parts = [methods.Parts(PAIR, ObjectiveConfig(), stored, mesh, packed=packed) for packed in (False, True)]
    expected, found = (
        take(batch, weights, packed=part.packed, loss=method.build(part).loss)
        for batch, part in zip(batches, parts, strict=True)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adapters_on_packed_rows(batches, weights):
    student, teacher = jax.tree.map(jnp.asarray, weights)
    adapters = models.init_lora(LORA, STUDENT, student, jax.random.key(4))
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    pair = replace(PAIR, lora=LORA)
    found = []
    for batch, packed in zip(batches, (False, True), strict=True):
        step = make_train_step(OneStream(pair, OBJECTIVE, packed=packed), OPTIMIZER)
        mine = jax.tree.map(jnp.copy, adapters)
        state, metrics = step(init_state(mine, OPTIMIZER, seed=3), Frozen(teacher, student), batch)
        found.append((state.params, metrics["sums"]))
    chex.assert_trees_all_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "mesh_config",
    [
        MeshConfig(data=4, student="replicated", teacher="replicated"),
        MeshConfig(data=2, fsdp=2, student="fsdp", teacher="fsdp"),
        MeshConfig(data=2, tensor=2, student="tensor", teacher="tensor"),
    ],
    ids=["data", "fsdp", "tensor"],
)
def test_packed_rows_on_a_mesh(batches, weights, mesh_config):
    expected = take(batches[0], weights, packed=False)
    mesh = make_mesh(mesh_config, jax.devices()[:4])
    with jax.set_mesh(mesh):
        shardings = [
            models.shardings(config, mesh, PRESETS[preset])
            for config, preset in ((STUDENT, mesh_config.student), (TEACHER, mesh_config.teacher))
        ]
        student, teacher = jax.device_put(weights, tuple(shardings))
        step = make_train_step(
            OneStream(PAIR, OBJECTIVE, packed=True), OPTIMIZER, shardings=state_shardings(student, OPTIMIZER)
        )
        batch = place_batch(mesh, batches[1], SEQUENCES)
        state, metrics = step(init_state(student, OPTIMIZER, seed=3), Frozen(teacher), batch)
    chex.assert_trees_all_close(
        jax.device_get((state.params, metrics["sums"])), jax.device_get(expected), rtol=1e-5, atol=1e-6
    )


def test_a_token_of_one_row_moves_no_logit_of_another(batches, weights):
    packed = batches[1]
    student, _ = weights
    hidden = partial(models.forward, STUDENT, student)
    before, _ = hidden(packed.input_ids, packed.positions, packed.segment_ids)
    sequence = int(np.argmax(packed.segment_ids.max(axis=1)))
    assert packed.segment_ids[sequence].max() >= 3
    place = int(np.flatnonzero(packed.segment_ids[sequence] == 2)[0])
    ids = packed.input_ids.copy()
    ids[sequence, place] = (ids[sequence, place] + 1) % 23
    after, _ = hidden(ids, packed.positions, packed.segment_ids)
    moved = np.abs(np.asarray(after - before)).max(axis=-1) > 0
    own = np.zeros_like(moved)
    own[sequence] = packed.segment_ids[sequence] == 2
    padding = packed.segment_ids == 0  # what stands there means nothing and is read by nobody
    assert moved[own].all() and not moved[~own & ~padding].any()
