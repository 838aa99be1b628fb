"""A second start takes its rows from where the first has kept them, and learns the same from them."""

import dataclasses
import logging

import pytest
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.runs import _prepare, _rows

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def changed(config, **options):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **options))


@pytest.fixture
def tokenized(monkeypatch):
    """How often rows were tokenised."""
    calls = []
    tokenize = _rows.tokenize

    def counting(*arguments, **options):
        calls.append(arguments)
        return tokenize(*arguments, **options)

    monkeypatch.setattr(_rows, "tokenize", counting)
    return calls


def losses(directory):
    return [row.get("loss") for row in read_metrics(directory / "metrics.jsonl")]


def test_two_runs_on_kept_rows_are_one(config, tmp_path, tokenized, caplog):
    short = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=3, eval_every=3))
    fresh = runs.train(with_output(changed(short, cache="off"), tmp_path / "fresh"))
    assert len(tokenized) == 2
    kept = changed(short, cache=str(tmp_path / "rows"))
    first = runs.train(with_output(kept, tmp_path / "first"))
    assert len(tokenized) == 4
    with caplog.at_level(logging.INFO):
        second = runs.train(with_output(kept, tmp_path / "second"))
    assert len(tokenized) == 4 and "training rows: 18 of 18 rows kept" in caplog.text
    assert losses(first.directory) == losses(second.directory) == losses(fresh.directory)
    assert first.after == second.after == fresh.after


def test_what_changes_rows_makes_them_anew_and_nothing_else_does(config, tmp_path, tokenized):
    kept = changed(config, cache=str(tmp_path / "rows"))
    _prepare.prepare(kept)
    assert len(tokenized) == 2
    for same in (changed(kept, batch_size=2), changed(kept, packing="rows")):
        _prepare.prepare(same)
    assert len(tokenized) == 2
    for count, other in enumerate(
        (changed(kept, max_length=40), changed(kept, held_out_rows=6), changed(kept, template="plain")), start=2
    ):
        _prepare.prepare(other)
        assert len(tokenized) == 2 * count


def test_small_data_are_kept_only_where_a_folder_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _prepare.prepare(config)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(_rows, "_WORTH_KEEPING", 1)
    _prepare.prepare(config)
    assert len(list((tmp_path / "selecttkd_jax" / "rows").glob("*.arrow"))) == 1


@pytest.mark.parametrize(("section", "name"), [("data", "cache"), ("training", "compilation_cache")])
def test_an_empty_name_is_no_folder(config, section, name):
    with pytest.raises(InputError, match=rf"{section}\.{name} is empty"):
        dataclasses.replace(getattr(config, section), **{name: ""})
