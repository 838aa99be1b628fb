"""One run with most of what [objective] can say: a control, shadows, schedules, two divergences."""

import dataclasses

import numpy as np
import pytest
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.runs import load_config
from selecttkd_jax.selection import SelectionConfig

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


def test_a_control_with_shadows_and_schedules_resumes_as_it_was(config, tmp_path):
    objective = ObjectiveConfig(
        divergence="reverse_kl",
        rejected="teacher_top_k_kl",
        rejected_top_k=3,
        verifier="random",
        of="label_in_top_k",
        k=2,
        shadows=("spec_k", "nucleus", "random"),
        schedule="linear",
        floor=0.0,
        floor_end=0.7,
        k_end=1,
    )
    training = dataclasses.replace(config.training, steps=4, eval_every=4, save_every=2)
    config = with_output(dataclasses.replace(config, objective=objective, training=training), tmp_path / "run")
    whole = runs.train(config)
    rows = read_metrics(whole.directory / "metrics.jsonl")
    assert len(rows) == 5
    for row in rows[1:]:
        found = {key: row[key] for key in row if key.startswith("shadows/")}
        assert set(found) == {
            f"shadows/{name}/{key}"
            for name in ("spec_k", "nucleus", "random")
            for key in ("accepted", "overlap", "rejected_overlap")
        }
        assert all(0 <= value <= 1 for value in found.values())
        assert found["shadows/random/accepted"] == pytest.approx(row["tar_pooled"])
    # A rejected token weighs nothing at first, and 0.7 at last.
    accepted = np.array([row["tar_pooled"] for row in rows[1:]])
    floors = np.array([0.0, 0.7 / 3, 1.4 / 3, 0.7])
    assert np.all(accepted < 1)
    np.testing.assert_allclose([row["mean_weight"] for row in rows[1:]], accepted + floors * (1 - accepted), rtol=1e-5)
    other = dataclasses.replace(config, objective=dataclasses.replace(objective, shadows=("spec_k",)))
    with pytest.raises(ValueError, match=r"objective.shadows .*there.*here"):
        runs.train(other)


def test_a_budget_keeps_its_share_of_every_batch(config, tmp_path):
    config = dataclasses.replace(
        config,
        objective=ObjectiveConfig(verifier="accept_all", floor=0.5, rejected="reverse_kl"),
        selection=SelectionConfig(score="teacher_entropy", keep="lowest", fraction=0.5, after_step=1),
        training=dataclasses.replace(config.training, steps=2, eval_every=2, save_every=2),
    )
    result = runs.train(with_output(config, tmp_path / "run"))
    first, second = read_metrics(result.directory / "metrics.jsonl")[1:]
    assert first["tar_pooled"] == first["mean_weight"] == 1.0
    assert second["tar_pooled"] * second["tokens"] == pytest.approx(round(0.5 * second["tokens"]))
    assert second["mean_weight"] == pytest.approx(0.5 + 0.5 * second["tar_pooled"])
    assert load_config(result.directory / "config.toml").selection == config.selection
