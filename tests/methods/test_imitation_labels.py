"""ImitKD's label rules: whose word a row's labels are."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selecttkd_jax import losses
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Rows, batch_shapes, make_batches
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.methods import ImitKd, Parts
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import Stored

LENGTH, ROWS, STEPS = 12, 4, 8


def stored():
    random = np.random.default_rng(0)
    tokens = tuple(random.integers(8, 40, 8 + row % 5).astype(np.int32) for row in range(17))
    response = tuple(np.arange(len(row)) >= 3 for row in tokens)
    rows = Rows(tokens, response, LENGTH, len(tokens))
    return Stored(make_batches(rows, ROWS, LENGTH, seed=1), batch_shapes(ROWS, LENGTH))


def write(role, sampling):
    """A writer that answers with nothing but the token 7, so that its rows are known by sight."""

    def rewrite(state, batch, chosen, key):
        sevens = np.where(batch.segment_ids > 0, 7, 0).astype(np.int32)
        change = {"input_ids": sevens, "labels": np.where(batch.loss_mask, 7, 0).astype(np.int32)}
        return replace(
            batch, **{name: np.where(chosen[:, None], new, getattr(batch, name)) for name, new in change.items()}
        )

    return rewrite


def build(mesh, **options):
    parts = Parts(
        pair=SimpleNamespace(vocab_size=40),
        objective=ObjectiveConfig(),
        stored=stored(),
        mesh=mesh,
        steps=STEPS,
        write=write,
    )
    return ImitKd(decay=20.0, **options).build(parts).source


@pytest.mark.parametrize("rollout_steps", [1, 3])
def test_rows_of_the_student_have_no_labels_under_the_hard_rule(rollout_steps):
    mesh = make_mesh(MeshConfig())
    sources = [build(mesh, labels=labels, rollout_steps=rollout_steps) for labels in ("full", "hard")]
    written = []
    for step in range(STEPS):
        state = SimpleNamespace(step=step, key=jax.random.key(5), params={})
        full, hard = (source.next(state) for source in sources)
        own = (full.input_ids[:, 0] == 7)[:, None]
        np.testing.assert_array_equal(hard.labels, np.where(own, -1, full.labels))
        jax.tree.map(np.testing.assert_array_equal, replace(hard, labels=0), replace(full, labels=0))
        written.append(own.sum())
        if step == 3:  # resumed, within a round
            position, sources[1] = sources[1].get_state(), build(mesh, labels="hard", rollout_steps=rollout_steps)
            sources[1].set_state(position)
    assert written[0] == 0 and 0 < sum(written) < STEPS * ROWS


def test_the_hard_rule_takes_the_cross_entropy_and_keeps_the_verifier():
    shared = ObjectiveConfig(verifier="spec_k", k=3)
    expected = replace(shared.build(), divergence=losses.hard_cross_entropy)
    assert ImitKd(labels="hard").objective(shared) == expected
    with pytest.raises(InputError, match=r'objective.divergence needs method.labels = "full"'):
        ImitKd(labels="hard").check(ObjectiveConfig(divergence="reverse_kl"))
    with pytest.raises(InputError, match="method.labels"):
        ImitKd(labels="soft")
