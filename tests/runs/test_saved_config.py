"""A run's own config.toml: what it says, and that it holds from elsewhere and after a move."""

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from runs import tiny_run

from selecttkd_jax import _provenance, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.runs import _identity, _saved, config_from_dict, load_config, save_config

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with models, rows and the record of a run, all named by relative paths, and its config."""
    root = tmp_path_factory.mktemp("project")
    config = tiny_run.build(root)
    models = replace(config.models, teacher="teacher", student="student")
    relative = replace(config, models=models, data=replace(config.data, train="rows.jsonl"), output="run")
    (root / "run/checkpoints/step_3").mkdir(parents=True)
    return root, relative


@pytest.fixture
def saved(project, tmp_path, monkeypatch):
    """A copy of it, entered, with the run's config.toml written."""
    root, config = project
    shutil.copytree(root, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    _saved.save_run(config, Path("run"))
    return tmp_path / "project", config


def test_every_option_stands_there_with_its_value_or_as_left_out(saved):
    root, config = saved
    text = (root / "run/config.toml").read_text()
    assert f"selecttkd_jax {_provenance.library_version()}" in text
    values = tomllib.loads(text)
    assert values["output"] == str(root / "run") and values["models"]["teacher"] == str(root / "teacher")
    assert values["data"]["train"] == str(root / "rows.jsonl")
    (line,) = (line for line in text.splitlines() if line.startswith("# Left out"))
    for section, option in (("data", "held_out"), ("training", "epochs"), ("logging", "samples_every")):
        assert option not in values[section] and f"{section}.{option}" in line
    assert "lora" in line and "training.steps" not in line
    assert replace(load_config(root / "run/config.toml"), output="run") == replace(
        _saved.with_absolute_paths(config), output="run"
    )


def test_the_same_run_is_recognised_however_its_paths_are_written(saved, tmp_path, monkeypatch):
    root, config = saved
    _identity.check_output(config, root / "run")  # from the same folder, by relative paths
    monkeypatch.chdir(tmp_path)
    _identity.check_output(_saved.open_run(root / "run"), root / "run")
    other = replace(config, models=replace(config.models, teacher=str(root / "student")))
    with pytest.raises(InputError, match="different run: models.teacher"):
        _identity.check_output(other, root / "run")


def test_a_run_that_started_before_paths_were_written_out_resumes(saved):
    root, config = saved
    save_config(config, root / "run/config.toml")  # as version 0.1 wrote it
    _identity.check_output(config, root / "run")


def test_a_project_that_moved_keeps_its_run(saved, tmp_path, monkeypatch):
    root, config = saved
    root.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    opened = runs.open_run("moved/run")
    assert opened.models.teacher == str(tmp_path / "moved/teacher")
    assert opened.data.train == str(tmp_path / "moved/rows.jsonl")
    assert opened.output == str(tmp_path / "moved/run")
    _identity.check_output(opened, tmp_path / "moved/run")
    monkeypatch.chdir(tmp_path / "moved")
    _identity.check_output(config, Path("run"))  # the old command in the new place


def test_a_run_that_moved_alone_finds_what_stayed(saved, tmp_path):
    root, config = saved
    (root / "run").rename(tmp_path / "elsewhere")
    opened = runs.open_run(tmp_path / "elsewhere")
    assert opened.models.teacher == str(root / "teacher")
    _identity.check_output(opened, tmp_path / "elsewhere")
    # The old command with the new output, from the folder of the models, by their short names.
    _identity.check_output(replace(config, output=str(tmp_path / "elsewhere")), tmp_path / "elsewhere")


def test_names_on_the_hub_stay_names(tmp_path):
    values = {
        "output": str(tmp_path),
        "models": {"teacher": "owner/big", "student": "owner/small"},
        "data": {"train": "owner/rows:all"},
    }
    config = config_from_dict(values, "test")
    assert _saved.with_absolute_paths(config) == config


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no directory"):
        runs.open_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no run: it lacks"):
        runs.open_run(tmp_path)


def test_a_commit_is_this_code_s_alone(monkeypatch, tmp_path):
    """A package in a virtual environment inside another repository must not take that repository's commit."""
    import subprocess

    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    copied = tmp_path / "site-packages/selecttkd_jax/_provenance.py"
    copied.parent.mkdir(parents=True)
    shutil.copy(_provenance.__file__, copied)
    monkeypatch.setattr(_provenance, "__file__", str(copied))
    asked = _provenance.library_commit.__wrapped__()
    assert asked is None
    words = ["-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run(["git", *words, "add", "."], check=True)
    subprocess.run(["git", *words, "commit", "--quiet", "-m", "one"], check=True)
    head = subprocess.run(["git", *words, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert _provenance.library_commit.__wrapped__() == head.strip()
    copied.write_text("changed")
    assert _provenance.library_commit.__wrapped__() == f"{head.strip()}-dirty"
