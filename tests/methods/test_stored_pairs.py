"""Contrastive records as data: what one run wrote, another run learns from without writing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import tiny_run
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm2
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs._prepare import prepare

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]

METHOD = DistiLlm2(teacher_text="stored", student_text="stored", sampling=Sampling(max_new_tokens=400))


def write_pairs(path):
    """Twenty records, of which two have prompts that are too long for a row."""
    texts = [" ".join(tiny_run.WORDS[i % 11 : i % 11 + 1 + i % 5]) for i in range(40)]
    long = " ".join(tiny_run.WORDS * 5)
    with path.open("w") as file:
        for row in range(20):
            prompt = long if row in (2, 4) else " ".join(tiny_run.WORDS[row % 7 : row % 7 + 4])
            pair = {"teacher_response": texts[row], "student_response": texts[39 - row]}
            file.write(json.dumps({"prompt": prompt, **pair}) + "\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs")
    config = tiny_run.build(directory)
    (Path(config.models.student) / "generation_config.json").unlink()
    write_pairs(directory / "pairs.jsonl")
    data = replace(config.data, train=str(directory / "pairs.jsonl"), columns=None)
    objective = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05)
    return replace(config, data=data, method=METHOD, objective=objective)


def test_both_sides_have_the_same_rows(config):
    prepared = prepare(config)
    assert prepared.student_rows is not None
    assert prepared.train_rows.sources == prepared.student_rows.sources and len(prepared.train_rows) == 13
    for teacher, student, mask in zip(
        prepared.train_rows.tokens, prepared.student_rows.tokens, prepared.train_rows.response, strict=True
    ):
        np.testing.assert_array_equal(teacher[: mask.argmax()], student[: mask.argmax()])


def test_a_run_learns_from_two_stored_responses_and_resumes(config, tmp_path, monkeypatch):
    whole = runs.train(with_output(config, tmp_path / "whole"))
    assert not (tmp_path / "whole" / "rollouts").exists()
    shown = StepProgress.__call__

    def interrupt(self, done, total, row):
        shown(self, done, total, row)
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runs.train(with_output(config, tmp_path / "run"))
    resumed = runs.train(with_output(config, tmp_path / "run"))
    rows = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (resumed, whole)]
    for ours, theirs in zip(*rows, strict=True):
        for name in ("loss", "divergence", "student_responses/tokens", "teacher_responses/tokens"):
            assert ours.get(name) == theirs.get(name)


def test_records_with_one_response_are_refused(config, tmp_path):
    path = Path(config.data.train)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[6] = {"prompt": "the cat", "completion": "sat"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = replace(config.data, train=str(tmp_path / "rows.jsonl"))
    with pytest.raises(InputError, match=r"line 7 has no student_response \(1 of 15 records have none\)"):
        prepare(replace(config, data=data))


def test_what_does_not_go_with_stored_text_is_refused():
    for other in ({"teacher_text": "written"}, {"teacher_text": "stored", "pairs": "epoch"}):
        with pytest.raises(InputError, match='needs teacher_text = "stored" and pairs = "step"'):
            DistiLlm2(student_text="stored", **other)
