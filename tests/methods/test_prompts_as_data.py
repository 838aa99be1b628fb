"""Where text is written, a stored response changes nothing: prompts alone take the very same steps."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_run
from runs.tiny_run import with_output

from selecttkd_jax import models, runs
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import OnPolicyKd
from selecttkd_jax.metrics import read_metrics

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)
CLOCKS = ("seconds", "tokens_per_second")


def test_prompts_with_and_without_responses_give_the_same_run(tmp_path):
    config = tiny_run.build(tmp_path)
    (Path(config.models.student) / "generation_config.json").unlink()
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    answered = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    files = {"held_out": answered[-5:], "answered": answered, "alone": [{"prompt": row["prompt"]} for row in answered]}
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = []
    for name in ("answered", "alone"):
        data = replace(
            config.data, columns=None, train=str(tmp_path / f"{name}.jsonl"), held_out=str(tmp_path / "held_out.jsonl")
        )
        loop = replace(config.training, steps=4)
        shared = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05)
        run = runs.train(
            replace(
                with_output(config, tmp_path / name),
                data=data,
                method=OnPolicyKd(sampling=SAMPLING),
                training=loop,
                objective=shared,
            )
        )
        metrics = [{key: row[key] for key in row if not key.endswith(CLOCKS)} for row in read_metrics(run.metrics)]
        found.append((metrics, models.from_pretrained(run.student).params))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 5
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])
