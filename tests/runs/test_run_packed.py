"""A run on packed rows: it learns, a resumed one repeats it, and what cannot be packed is said."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from runs.tiny_run import with_output

from selecttkd_jax import models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import config_from_dict, config_to_dict

CLOCKS = {"step_seconds", "tokens_per_second"}

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def pack(config, output):
    data = dataclasses.replace(config.data, packing=True, batch_size=2)
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
        assert ("of a batch is padding: data.packing = true" in caplog.text) is expected


def test_a_method_that_learns_from_written_text_is_not_packed(config):
    values = config_to_dict(config)
    values["data"]["packing"] = True
    config_from_dict(values, "packed.toml")
    values["method"] = {"name": "gkd"}
    with pytest.raises(InputError, match=r"data\.packing puts stored responses together, and method gkd"):
        config_from_dict(values, "packed.toml")
