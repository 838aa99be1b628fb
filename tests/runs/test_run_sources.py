"""Runs on several sources: read from TOML, mixed, kept one by one, resumed, and refused in one line."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from runs.tiny_run import with_output

from selecttkd_jax import data, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import _prepare, _rows, config_from_dict, config_to_dict, load_config, save_config

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


@pytest.fixture(scope="module")
def files(config, tmp_path_factory):
    """Two files: the run's first 15 rows, and its others in other columns."""
    folder = tmp_path_factory.mktemp("sources")
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    first, second = folder / "first.jsonl", folder / "second.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows[:15]))
    second.write_text(
        "".join(json.dumps({"prompt": r["question"], "completion": r["answer"]}) + "\n" for r in rows[15:])
    )
    return first, second


def mixed(config, files, output="unused", weights=(3.0, 1.0), **options):
    values = config_to_dict(config)
    del values["data"]["train"], values["data"]["columns"]
    sources = [{"path": str(path)} for path in files]
    sources[0]["columns"] = ["question", "answer"]
    for source, weight in zip(sources, weights, strict=True):
        if weight is not None:
            source["weight"] = weight
    values["data"] |= {"sources": sources, "held_out_rows": 4, **options}
    return with_output(config_from_dict(values, "mixed"), output)


def numbers(directory):
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_sources_come_back_from_the_file_that_a_run_saves(config, files, tmp_path):
    there = mixed(config, files)
    save_config(there, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == there
    assert "[[data.sources]]" in (tmp_path / "config.toml").read_text()


def test_a_mixed_run_learns_resumes_and_knows_its_weights(config, files, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        whole = runs.train(mixed(config, files, tmp_path / "whole"))
    assert "first.jsonl: 13 rows, 75 % of what is learned from" in caplog.text
    assert "second.jsonl: 6 rows, 25 % of what is learned from" in caplog.text
    assert whole.after["kl"] < whole.before["kl"]

    class Stopped(Exception):
        pass

    def stop(self, done, total, row):
        if done == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "__call__", stop)
        with pytest.raises(Stopped):
            runs.train(mixed(config, files, tmp_path / "run"))
    with pytest.raises(InputError, match=r"data\.sources\[1\]\.weight \(1\.0 there, 2\.0 here\)"):
        runs.train(mixed(config, files, tmp_path / "run", weights=(3.0, 2.0)))
    resumed = runs.train(mixed(config, files, tmp_path / "run"))
    assert numbers(resumed.directory) == numbers(whole.directory)


def test_an_epoch_has_as_many_rows_as_the_sources(config, files, tmp_path):
    epochs = mixed(config, files, tmp_path / "run")
    training = dataclasses.replace(epochs.training, epochs=1.0, eval_every=100)
    runs.train(dataclasses.replace(epochs, training=training))
    assert load_config(tmp_path / "run" / "config.toml").training.steps == 5  # 19 rows in batches of 4


def test_each_source_is_kept_by_itself(config, files, tmp_path, monkeypatch):
    asked = []
    tokenize = _rows.tokenize
    monkeypatch.setattr(
        _rows, "tokenize", lambda *a, **kw: (asked.append(Path(kw["path"]).name), tokenize(*a, **kw))[1]
    )
    folder = str(tmp_path / "kept")
    fresh = _prepare.prepare(mixed(config, files, cache=folder))
    assert asked == ["first.jsonl", "first.jsonl", "second.jsonl", "second.jsonl"]  # learned from, and held out
    assert len(list(Path(folder).glob("*.arrow"))) == 2
    kept = _prepare.prepare(mixed(config, files, cache=folder))
    assert len(asked) == 4 and kept.train_rows.fingerprint == fresh.train_rows.fingerprint
    assert not kept.train_rows.tokens[-1].flags.writeable  # the file's
    _prepare.prepare(mixed(config, files, cache=folder, weights=(4.0, 1.0)))
    assert len(asked) == 4
    other = _prepare.prepare(mixed(config, files, cache=folder, weights=(4.0, 1.0), held_out=str(files[1])))
    # The held-out rows are another file's now, so the sources hold none out.
    assert asked[4:] == ["second.jsonl", "first.jsonl", "second.jsonl"] and len(other.train_rows) == 23
    again = mixed(config, files, cache=folder, weights=(9.0, 1.0), held_out=str(files[1]))
    assert _prepare.prepare(again).train_rows.fingerprint != other.train_rows.fingerprint and len(asked) == 7


def test_an_evaluation_reads_the_last_rows_of_each_source(config, files):
    records = data.read_held_out(mixed(config, files, held_out_rows=3).data)
    assert [Path(record.source).name for record in records] == [
        "first.jsonl line 14",
        "first.jsonl line 15",
        "second.jsonl line 8",
    ]


def test_held_out_rows_of_one_source_in_another_are_reported(config, files, caplog):
    twice = (files[0], files[0].with_name("again.jsonl"))
    twice[1].write_text("".join(reversed(files[0].read_text().splitlines(keepends=True))))
    columns = ("question", "answer")
    sources = tuple(data.SourceConfig(path=str(path), columns=columns) for path in twice)
    both = dataclasses.replace(mixed(config, files).data, sources=sources)
    _prepare.prepare(dataclasses.replace(config, data=both))
    assert "held-out rows are training rows too" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'path = "x"\nweigt = 1',
            r"unknown option data\.sources\[0\]\.weigt \(did you mean 'weight'\?\)",
        ),
        ("weight = 1.0", r"data\.sources\[0\]\.path is missing"),
        ('path = "x"\nweight = "1"', r"data\.sources\[0\]\.weight: expected"),
        ('path = "x"\nweight = -2', "weight of the source x must be more than 0"),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, lines, message):
    file = tmp_path / "config.toml"
    file.write_text(f'output = "o"\n[models]\nteacher = "t"\nstudent = "s"\n[[data.sources]]\n{lines}\n')
    with pytest.raises(InputError, match=message):
        load_config(file)
    file.write_text(file.read_text().replace("[[data.sources]]", "[data.sources]"))
    with pytest.raises(InputError, match=r"data\.sources is a list of tables; write each as \[\[data\.sources\]\]"):
        load_config(file)


def test_a_source_without_a_usable_row_is_named(config, files, tmp_path):
    none, few = tmp_path / "none.jsonl", tmp_path / "few.jsonl"
    none.write_text(json.dumps({"prompt": "the cat " * 80, "completion": "sat"}) + "\n")
    few.write_text("")
    with pytest.raises(InputError, match=r"no row of .*none\.jsonl is left"):
        _prepare.prepare(mixed(config, (files[0], none), held_out=str(files[1])))
    with pytest.raises(InputError, match=r"few\.jsonl' is empty"):
        _prepare.prepare(mixed(config, (files[0], few)))
    with pytest.raises(InputError, match=r"none\.jsonl has 1 rows, .* hold out 2 of the 4 of them"):
        _prepare.prepare(mixed(config, (files[0], none)))
