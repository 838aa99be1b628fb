"""How many sequences a batch takes, and what is placed of each kind of batch."""

import jax
import numpy as np
import pytest

from selecttkd_jax.data import Responses, Rollouts, Rows, WithCorpus, eval_batches
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import RowPacker
from selecttkd_jax.training._draws import draw_uniforms

LENGTH = 16


def batch_of(*lengths, rows=8):
    tokens = tuple(np.arange(1, count + 1, dtype=np.int32) for count in lengths)
    response = tuple(np.arange(len(row)) >= 1 for row in tokens)
    (batch,) = eval_batches(Rows(tokens, response, LENGTH, read=len(tokens)), rows, LENGTH)
    return batch


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.mark.parametrize(
    ("rows", "unit", "sizes"),
    [(64, 1, [16, 24, 32, 48, 64]), (64, 16, [16, 32, 48, 64]), (8, 2, [2, 4, 6, 8]), (8, 8, [8]), (3, 1, [1, 2, 3])],
)
def test_there_are_few_numbers_of_sequences(mesh, rows, unit, sizes):
    assert RowPacker(mesh, rows, unit).sizes() == sizes


@pytest.mark.parametrize(
    ("lengths", "sequences"),
    [((4,) * 8, 2), ((5,) * 8, 3), ((8, 8, 9, 7, 3, 3, 3, 3), 3), ((16,) * 5, 6), ((16,) * 8, 8)],
)
def test_a_batch_takes_the_next_number_that_suffices(mesh, lengths, sequences):
    packed = RowPacker(mesh, 8, 1)(batch_of(*lengths))
    assert packed.input_ids.shape == (sequences, LENGTH)
    assert int(packed.loss_mask.sum()) == sum(lengths) - len(lengths)


def test_both_streams_have_as_many_sequences_and_skews_by_token(mesh):
    teacher, student = batch_of(*(2,) * 8), batch_of(*(9,) * 8)
    skews = np.arange(8, dtype=np.float32) / 10
    packed = RowPacker(mesh, 8, 1)(Responses(teacher, student, skews, None))
    assert packed.teacher.input_ids.shape == packed.student.input_ids.shape == (8, LENGTH)
    np.testing.assert_allclose(np.asarray(packed.teacher_alpha)[0], np.repeat(skews, 2))
    assert packed.student_alpha is None


def test_rollouts_take_their_numbers_along(mesh):
    rows = batch_of(*(4,) * 8)
    numbers = [np.random.default_rng(seed).random((8, LENGTH)).astype(np.float32) for seed in range(3)]
    packed = RowPacker(mesh, 8, 1)(WithCorpus(Rollouts(rows, *numbers), corpus=batch_of(*(5,) * 8)))
    assert packed.corpus.input_ids.shape == (3, LENGTH)
    packed = packed.rows
    for found, given in zip((packed.old_log_prob, packed.importance, packed.advantage), numbers, strict=True):
        assert np.asarray(found)[0].tolist() == given[:4, :4].ravel().tolist()


def test_a_mesh_has_its_share_of_each_number():
    mesh = make_mesh(MeshConfig(data=4))
    packed = RowPacker(mesh, 16, 8)(batch_of(*(2,) * 16, rows=16))
    assert packed.input_ids.shape == (8, LENGTH)
    assert {shard.data.shape for shard in packed.input_ids.addressable_shards} == {(2, LENGTH)}


def test_draws_are_those_of_the_rows(mesh):
    batch = batch_of(5, 16, 3, 4, 7, 1)
    packed, key = RowPacker(mesh, 8, 1)(batch), jax.random.key(3)
    alone, together = np.asarray(draw_uniforms(key, batch)), np.asarray(draw_uniforms(key, packed))
    assert together.shape == (3, LENGTH)
    np.testing.assert_array_equal(together[1], [*alone[4, :7], *alone[0, :5], *alone[3, :4]])
