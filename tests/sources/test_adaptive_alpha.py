"""The skew of each response, against DistiLLM-2's rule written out in NumPy."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax.data import Batch, Responses, batch_shapes
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import AdaptiveAlpha
from selecttkd_jax.training import Frozen, Pair

pytestmark = pytest.mark.one_stack

B, T, V, WINDOW, STEPS = 4, 9, 19, 3, 7
SHAPE = {"hidden_size": 8, "mlp_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "init_scale": 0.8}
CONFIG = models.DecoderConfig(vocab_size=V, num_layers=1, **SHAPE)
STUDENT, TEACHER = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (1, 2))
PAIR = Pair(student=CONFIG, teacher=CONFIG, vocab_size=V)


def make_batch(seed):
    random = np.random.default_rng(seed)
    ids = random.integers(0, V, (B, T)).astype(np.int32)
    lengths = random.integers(3, T, (B, 1))
    place = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    mask = (place >= 1) & (place < lengths) & (np.arange(B) != seed % 7)[:, None]
    return Batch(ids, np.roll(ids, -1, axis=1), mask, place, (place <= lengths).astype(np.int32))


BATCHES = [Responses(make_batch(2 * step), make_batch(2 * step + 1)) for step in range(STEPS)]


class Given:
    """A source of those batches."""

    shapes = Responses(batch_shapes(B, T), batch_shapes(B, T))

    def __init__(self):
        self.taken = 0

    def next(self, state):
        self.taken += 1
        return BATCHES[self.taken - 1]

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


def likelihood(params, batch):
    """exp(mean_t log p(y_t)) of each row."""
    hidden, _ = models.forward(CONFIG, params, batch.input_ids, batch.positions, batch.segment_ids)
    logits = np.asarray(models.head_logits(CONFIG, params, hidden), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, batch.labels[..., None], axis=-1)[..., 0]
    means = [row[mask].mean() if mask.any() else 0.0 for row, mask in zip(picked, batch.loss_mask, strict=True)]
    return np.exp(means)


def expected_skews(by_row):
    """[step][stream][row]."""
    gaps = []
    for both in BATCHES:
        on_teacher = likelihood(TEACHER, both.teacher) - likelihood(STUDENT, both.teacher)
        on_student = likelihood(STUDENT, both.student) - likelihood(TEACHER, both.student)
        gaps.append((on_teacher, on_student))
    references = [np.mean([step[stream].mean() for step in gaps[:WINDOW]]) for stream in (0, 1)]
    found = []
    for step, streams in enumerate(gaps):
        of_step = []
        for gap, reference in zip(streams, references, strict=True):
            gap = gap if by_row else np.full(B, gap.mean())
            skew = np.clip(1 - 0.9 * reference / (gap + 1e-5), 0.01, 0.1)
            of_step.append(np.full(B, 0.1) if step < WINDOW else skew)
        found.append(of_step)
    return found


def build(by_row, mesh):
    return AdaptiveAlpha(Given(), PAIR, Frozen(TEACHER), mesh, base=0.1, window=WINDOW, by_row=by_row)


def state_at(step):
    return SimpleNamespace(step=step, key=jax.random.key(0), params=STUDENT)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, tensor=2)], ids=["alone", "mesh"])
@pytest.mark.parametrize("by_row", [False, True])
def test_skews_follow_the_rule_also_in_a_run_that_was_resumed(by_row, mesh):
    mesh, found = make_mesh(mesh), []
    with jax.set_mesh(mesh):
        source = build(by_row, mesh)
        for step in range(STEPS):
            if step in (2, 5):
                position, source = json.loads(json.dumps(source.get_state())), build(by_row, mesh)
                source.set_state(position)
            both = source.next(state_at(step))
            assert both.teacher is BATCHES[step].teacher and both.student is BATCHES[step].student
            found.append((both.teacher_alpha, both.student_alpha))
    expected = expected_skews(by_row)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found[0][0].dtype == np.float32 and jax.tree.map(np.shape, both) == jax.tree.map(np.shape, source.shapes)
    after = np.array(expected[WINDOW:])
    assert after.min() == 0.01 and after.max() == 0.1, "the rule has nothing to decide"
