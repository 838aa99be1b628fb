"""A run on packed rows: it learns, a resumed one repeats it, and written rows are learned from as they are alone."""

import dataclasses
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from runs.tiny_run import with_output

from selecttkd_jax import models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm2, Gkd, Kd, MiniLlm
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.sharding import make_mesh

CLOCKS = {"step_seconds", "tokens_per_second"}

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def pack(config, output):
    data = dataclasses.replace(config.data, packing="sequences", batch_size=2)
    return with_output(dataclasses.replace(config, data=data), output)


def rows_of(directory):
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def test_a_packed_run_learns_and_a_resumed_one_repeats_it(config, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        whole = runs.train(pack(config, tmp_path / "whole"))
    assert "packed: " in caplog.text and "rows share a sequence of 48 tokens and fill" in caplog.text
    assert whole.after["kl"] < whole.before["kl"]

    class Stopped(Exception):
        pass

    def stop(self, done, total, row):
        if done == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "__call__", stop)
        with pytest.raises(Stopped):
            runs.train(pack(config, tmp_path / "run"))
    resumed = runs.train(pack(config, tmp_path / "run"))
    assert rows_of(resumed.directory) == rows_of(whole.directory)
    ours, theirs = models.from_pretrained(resumed.student), models.from_pretrained(whole.student)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_a_batch_that_is_mostly_padding_says_what_helps(config, tmp_path, caplog):
    training = dataclasses.replace(config.training, steps=1, micro_batches=1)
    for length, expected in ((96, True), (40, False)):
        data = dataclasses.replace(config.data, max_length=length)
        short = dataclasses.replace(config, data=data, training=training)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            runs.train(with_output(short, tmp_path / str(length)))
        assert ("of a batch is padding: data.packing = sequences" in caplog.text) is expected


SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)


@pytest.mark.parametrize(
    "method",
    [
        Kd(),
        Gkd(sampling=SAMPLING, student_share=0.7),
        DistiLlm2(sampling=SAMPLING, adaptive_alpha="released", reference_steps=2),
        MiniLlm(sampling=SAMPLING, rollouts=4, passes=2, pretraining=1.0),
    ],
    ids=["kd", "gkd", "distillm2", "minillm"],
)
def test_rows_that_share_sequences_are_learned_from_as_alone(config, tmp_path, method, caplog):
    (Path(config.models.student) / "generation_config.json").unlink(missing_ok=True)  # the teacher's stop tokens
    objective = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05)  # draws, too, are those of rows
    training = dataclasses.replace(config.training, steps=4, eval_every=4, micro_batches=1)
    logs = dataclasses.replace(config.logging, samples_every=2)
    longer = dataclasses.replace(config.data, max_length=96, batch_size=8)
    written = dataclasses.replace(
        config, method=method, objective=objective, training=training, data=longer, logging=logs
    )
    alone = runs.train(with_output(written, tmp_path / "alone"))
    packing = dataclasses.replace(written, data=dataclasses.replace(longer, packing="rows"))
    with caplog.at_level(logging.DEBUG, "selecttkd_jax.sources"):
        packed = runs.train(with_output(packing, tmp_path / "packed"))
    used = [int(number) for number in re.findall(r"packed: 8 rows share (\d) sequences", caplog.text)]
    assert len(used) == 4 and max(used) < 8
    for ours, theirs in zip(rows_of(packed.directory), rows_of(alone.directory), strict=True):
        compared = [name for name in theirs if not name.endswith(("seconds", "tokens_per_second"))]
        assert {name: ours[name] for name in compared} == pytest.approx(
            {name: theirs[name] for name in compared}, rel=1e-5, abs=1e-6
        ), theirs["step"]


def test_auto_is_rows_where_a_kernel_serves_them(config, monkeypatch):
    mesh, pair = make_mesh(config.mesh), runs.abstract_pair(config)
    assert config.data.packing == "auto" and runs.choose_packing(config, pair, mesh).data.packing == "off"

    def only_packed(*arguments, packed, **options):
        return ("splash" if packed else "xla"), "a test"

    monkeypatch.setattr(models, "choose_attention", only_packed)
    assert runs.choose_packing(config, pair, mesh).data.packing == "rows"
    off = dataclasses.replace(config, data=dataclasses.replace(config.data, packing="off"))
    assert runs.choose_packing(off, pair, mesh) == off


def test_sequences_are_filled_before_a_run_from_responses_alone(config):
    with pytest.raises(InputError, match="method gkd learns from more than those: take rows"):
        dataclasses.replace(pack(config, Path("run")), method=Gkd(sampling=SAMPLING))
