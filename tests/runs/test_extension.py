"""A run that is given more steps after its end: the longer run to the last digit, or told where it is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from runs.test_run import rows_of
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.methods import DistiLlm2, ImitKd
from selecttkd_jax.runs import _extension, _finished, _identity, _train

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


def of_steps(config, steps):
    return replace(config, training=replace(config.training, steps=steps))


@pytest.fixture(scope="module")
def constant(config, tmp_path_factory):
    """The tiny run at a constant rate; its programs are compiled once for all that is tested here."""
    training = replace(config.training, compilation_cache=str(tmp_path_factory.mktemp("programs")))
    optimizer = replace(config.optimizer, schedule="constant", warmup_steps=2)
    return replace(config, optimizer=optimizer, training=training).on_platform("cpu")


@pytest.fixture(scope="module")
def short(constant, tmp_path_factory):
    """It, ended after four steps."""
    with jax.numpy_dtype_promotion("standard"):
        return runs.train(with_output(of_steps(constant, 4), tmp_path_factory.mktemp("short") / "run"))


def test_at_a_constant_rate_it_is_the_longer_run_to_the_last_digit(constant, short, tmp_path, caplog):
    shutil.copytree(short.directory, tmp_path / "run")
    with caplog.at_level("INFO"):
        longer = runs.train(with_output(of_steps(constant, 8), tmp_path / "run"))
    assert "goes on from 4 to 8 steps, as one of 8 steps from the start would" in caplog.text
    whole = runs.train(with_output(of_steps(constant, 8), tmp_path / "whole"))
    assert rows_of(longer.directory) == rows_of(whole.directory)
    ours, theirs = (run.student / "model.safetensors" for run in (longer, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    kinds = [json.loads(line)["event"] for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert [kind for kind in kinds if kind != "warning"] == [
        *("start", "finish", "export"),
        *("extend", "finish", "export"),
    ]
    assert runs.load_config(tmp_path / "run/config.toml").training.steps == 8


def test_fewer_steps_are_another_run_and_so_is_another_option(constant, short):
    with pytest.raises(InputError, match=r"different run: training.steps \(4 there, 3 here\)"):
        _identity.check_output(with_output(of_steps(constant, 3), short.directory), short.directory)
    other = replace(with_output(of_steps(constant, 8), short.directory), seed=1)
    with pytest.raises(InputError, match=r"different run: seed \(0 there, 1 here\); choose"):
        _identity.check_output(other, short.directory)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(constant, short, tmp_path):
    shutil.copytree(short.directory, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="a run of 4 steps without a checkpoint"):
        _identity.check_output(with_output(of_steps(constant, 8), tmp_path / "run"), tmp_path / "run")


def refuse(*arguments, **options):
    raise InputError("made with other things")


def test_an_extension_that_is_refused_changes_nothing(constant, short, tmp_path, monkeypatch):
    shutil.copytree(short.directory, tmp_path / "run")
    before = (tmp_path / "run/config.toml").read_bytes()
    monkeypatch.setattr(_train, "check_same_ingredients", refuse)
    with pytest.raises(InputError, match="made with other things"):
        runs.train(with_output(of_steps(constant, 8), tmp_path / "run"))
    assert (tmp_path / "run/config.toml").read_bytes() == before


def test_a_student_from_before_an_extension_is_not_the_run_s(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short.directory, run)
    assert runs.trained_student(run) == str(run / "student")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "extend"}\n')
    with pytest.raises(InputError, match="from before the run was told to go on"):
        runs.trained_student(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="a run of 4 steps without its checkpoints"):
        _finished.rows_of_finished(run)


def test_a_run_whose_last_evaluation_is_missing_is_not_finished(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short.directory, run, ignore=shutil.ignore_patterns("checkpoints"))
    found = _finished.rows_of_finished(run)
    assert found is not None and found[-1]["step"] == 4
    found[-1] = {name: value for name, value in found[-1].items() if not name.startswith("held_out/")}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    with pytest.raises(InputError, match="a run of 4 steps without its checkpoints"):
        _finished.rows_of_finished(run)


def test_a_start_that_saved_nothing_is_begun_anew_whatever_comes_between(constant, short, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(short.directory / "config.toml", run)
    rows = [{"step": step} for step in range(4)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    often = replace(constant, training=replace(constant.training, steps=4, save_every=1))
    monkeypatch.setattr(_train, "load_teacher", refuse)
    with pytest.raises(InputError, match="made with other things"):
        runs.train(with_output(often, run))
    assert runs.load_config(run / "config.toml").training.save_every == 1
    assert _finished.rows_of_finished(run) is None
    # A save waits for a step that learns.
    skipped = [{"step": step, "skipped": 1} for step in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [{"step": 0}, *skipped]))
    assert _finished.rows_of_finished(run) is None


def test_a_start_that_was_killed_at_its_first_file_is_no_other_run(constant, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.toml.abcd.unfinished").touch()
    _identity.check_output(with_output(constant, tmp_path), tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds files but no run of ours"):
        _identity.check_output(with_output(constant, tmp_path), tmp_path)


def test_what_becomes_of_a_falling_rate_is_said(config):
    said, same = _extension.describe_extension(of_steps(config, 8), 4, 4)
    assert not same and "the cosine schedule lies over 8 steps from here on" in said
    # By hand: warm-up of one step in both, cosine over 7 of 8: step 5 is four steps behind the warm-up's end.
    import math

    expected = 5e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 7))
    before = 5e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 4))
    optimizer = replace(config.optimizer, warmup_fraction=0.0)
    said, _ = _extension.describe_extension(replace(of_steps(config, 7), optimizer=optimizer), 4, 4)
    assert f"step 5 is {expected:.3g} after {before:.3g}" in said


def test_warm_up_by_share_and_schedules_of_methods_are_no_longer_run(config):
    constant = replace(config.optimizer, schedule="constant", warmup_fraction=0.5)
    assert not _extension.describe_extension(replace(of_steps(config, 8), optimizer=constant), 4, 4)[1]
    steady = replace(constant, warmup_fraction=0.0)
    assert _extension.describe_extension(replace(of_steps(config, 8), optimizer=steady), 4, 4)[1]
    method = ImitKd()
    objective = replace(config.objective, divergence=None, alpha=None)
    moved = replace(of_steps(config, 8), optimizer=steady, method=method, objective=objective)
    said, same = _extension.describe_extension(moved, 4, 4)
    assert not same and "so does the schedule of method imitkd" in said
    falling = replace(config.objective, verifier="greedy_top_k", floor=1.0, floor_end=0.1, schedule="linear")
    said, same = _extension.describe_extension(replace(of_steps(config, 8), optimizer=steady, objective=falling), 4, 4)
    assert not same and "so does the schedule of [objective]" in said


def test_epochs_may_grow_and_a_method_of_epochs_may_not(config):
    def of_epochs(epochs):
        return replace(config, training=replace(config.training, epochs=epochs))

    assert _extension.with_length_of(of_epochs(2.0), of_epochs(3.0)).training.epochs == 3.0
    assert _extension.with_length_of(of_epochs(2.0), of_epochs(1.0)).training.epochs == 2.0
    assert _extension.with_length_of(config, of_epochs(3.0)) == config
    divided = replace(
        of_steps(config, 9), method=DistiLlm2(), objective=replace(config.objective, divergence=None, alpha=None)
    )
    with pytest.raises(InputError, match="method distillm2 divides its steps into epochs"):
        _extension.with_length_of(of_steps(divided, 8), divided)


def test_steps_of_a_run_that_counts_epochs_are_refused(short, tmp_path):
    text = (short.directory / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("[training]\n", "[training]\nepochs = 2.0\n"))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="give --training.epochs instead"):
        runs.open_run(Path(tmp_path), {"training": {"steps": 20}})
