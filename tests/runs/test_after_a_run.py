"""What comes after a run: its student evaluated, its checkpoints exported, more steps, its record shown."""

import json
from pathlib import Path

import jax
import pytest
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax.cli import main

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of eight steps, with checkpoints of the steps 6 and 8."""
    with jax.numpy_dtype_promotion("standard"):
        return runs.train(with_output(config, tmp_path_factory.mktemp("finished") / "run"))


def printed(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("selecttkd: error: "))
    return line


def test_a_run_s_student_is_evaluated_and_not_the_one_before_training(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the run's own paths hold from anywhere
    said = json.loads(printed(capsys, "evaluate", finished.directory, "--json"))
    (trained,) = said["students"]
    assert trained.pop("student") == str(finished.student)
    assert trained == pytest.approx(finished.after, rel=1e-6)
    assert finished.after["kl"] != pytest.approx(finished.before["kl"], rel=1e-2)
    same = json.loads(printed(capsys, "evaluate", finished.directory / "config.toml", "--json"))
    assert same["students"][0]["student"] == str(finished.student)


def test_several_students_share_a_table_and_options_hold(finished, config, capsys):
    words = ["evaluate", finished.directory, "--student", finished.student, config.models.student, "--json"]
    after, before = json.loads(printed(capsys, *words))["students"]
    assert after["kl"] == pytest.approx(finished.after["kl"], rel=1e-6)
    assert before["kl"] == pytest.approx(finished.before["kl"], rel=1e-6)
    fewer = json.loads(printed(capsys, *words, "--data.held-out-rows", "2"))["students"]
    assert fewer[0]["tokens"] < after["tokens"]
    table = printed(capsys, *words[:-1])
    assert f"{after['kl']:.4f}" in table and f"{before['kl']:.4f}" in table


def test_a_configuration_elsewhere_scores_its_own_student_and_says_so(finished, config, capsys, tmp_path):
    (tmp_path / "mine.toml").write_text((finished.directory / "config.toml").read_text())
    assert main(["evaluate", str(tmp_path / "mine.toml"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["students"][0]["student"] == config.models.student
    assert f"the trained one: selecttkd evaluate {finished.directory}" in err


def test_a_run_without_a_student_says_what_there_is(finished, capsys, tmp_path):
    young = tmp_path / "young"
    (young / "checkpoints/step_6").mkdir(parents=True)
    (young / "config.toml").write_text((finished.directory / "config.toml").read_text())
    line = refused(capsys, "evaluate", young)
    assert "has no student yet; its newest checkpoint is of step 6: selecttkd export" in line
    assert "is no run" in refused(capsys, "evaluate", Path(tmp_path))
