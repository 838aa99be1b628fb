"""What comes after a run: its student evaluated, its checkpoints exported, more steps, its record shown."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax.cli import main
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.methods import MiniLlm
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.runs import _export
from selecttkd_jax.runs._card import Scores, student_card
from selecttkd_jax.selection import SelectionConfig

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


def test_the_last_checkpoint_exports_to_the_student_byte_for_byte(finished, capsys, tmp_path):
    assert "exports/step-8" in printed(capsys, "export", finished.directory)
    there = finished.directory / "exports/step-8"
    assert {path.name for path in there.iterdir()} == {path.name for path in finished.student.iterdir()}
    for path in finished.student.iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes(), path.name
    printed(capsys, "export", finished.directory, tmp_path / "six", "--step", "6")
    assert (tmp_path / "six/model.safetensors").read_bytes() != (there / "model.safetensors").read_bytes()
    assert "6 of 8" in (tmp_path / "six/README.md").read_text()


def test_an_export_of_what_is_not_there_says_what_is(finished, capsys, tmp_path):
    line = refused(capsys, "export", finished.directory, "--step", "7")
    assert "holds no checkpoint of step 7: there are those of the steps 6, 8" in line
    (tmp_path / "thesis.tex").write_text("precious")
    assert "thesis.tex, which is not a model's file" in refused(capsys, "export", finished.directory, tmp_path)


def test_a_checkpoint_that_is_not_what_was_saved_is_not_exported(finished, capsys, tmp_path):
    """By its record, and by the checksum of an array; the run's own files stay as they are."""
    import zlib

    shutil.copytree(finished.directory, tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints/step_8/record").glob("metadata")
    record = json.loads(path.read_text())
    name = next(name for name in record["checksums"] if name.startswith("params/"))
    record["checksums"][name] += 1
    path.write_text(json.dumps(record))
    assert "its record of position and checksums has changed" in refused(capsys, "export", tmp_path / "run")
    del record["checksum"]
    record["checksum"] = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    path.write_text(json.dumps(record))
    assert f"{name} has changed since it was saved" in refused(capsys, "export", tmp_path / "run")
    assert printed(capsys, "export", tmp_path / "run", "--step", "6")
    (tmp_path / "run/checkpoints/step_6/state/manifest.ocdbt").write_bytes(b"torn")
    # In a process of its own: Orbax leaves reads beside a torn file unfinished, which later tests would stumble over.
    words = [sys.executable, "-m", "selecttkd_jax", "export", str(tmp_path / "run"), "--step", "6"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "step_6 cannot be read" in done.stderr


def test_a_torn_line_of_metrics_costs_an_export_its_numbers_alone(finished, tmp_path, caplog):
    shutil.copytree(finished.directory, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    (tmp_path / "run/metrics.jsonl").write_text("\n".join([lines[0][:20], *lines[1:]]) + "\n")
    student, _ = runs.export_checkpoint(runs.open_run(tmp_path / "run"))
    card = (student / "README.md").read_text()
    assert "line 1 is not valid JSON" in caplog.text
    assert f"{finished.after['kl']:.4f} |" in card and f"{finished.before['kl']:.4f}" not in card


def test_an_export_goes_where_one_is(finished, capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "here-adapter" not in printed(capsys, "export", finished.directory, ".")
    assert (tmp_path / "here/model.safetensors").read_bytes() == (finished.student / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path / "here")  # the directory has been replaced
    assert "holds here, which is not a model's file" in refused(capsys, "export", finished.directory, "..")
    assert "not a model's file" in refused(capsys, "export", finished.directory, "/")


def test_the_teacher_may_be_gone(finished, tmp_path, caplog):
    run = runs.open_run(finished.directory)
    run = replace(run, models=replace(run.models, teacher=str(tmp_path / "gone")))
    student, _ = runs.export_checkpoint(run, 8, tmp_path / "out")
    for path in finished.student.iterdir():
        assert path.name == "README.md" or (student / path.name).read_bytes() == path.read_bytes(), path.name
    card = (student / "README.md").read_text()
    assert "distilled from gone" in card and str(tmp_path) not in card
    assert "where an answer ends is taken from" in caplog.text


def test_a_card_that_somebody_wrote_is_not_replaced(finished, capsys, tmp_path):
    printed(capsys, "export", finished.directory, tmp_path / "out")
    printed(capsys, "export", finished.directory, tmp_path / "out")
    (tmp_path / "out/README.md").write_text("# My own words\n")
    assert "README.md, which is not a model's file" in refused(capsys, "export", finished.directory, tmp_path / "out")


def test_the_card_says_where_the_student_comes_from(finished, config):
    from huggingface_hub import ModelCard

    card = ModelCard.load(finished.student / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert "selecttkd" in card.data.tags and "knowledge-distillation" in card.data.tags
    assert card.data.base_model is None and card.data.license is None  # a local model without a card: nothing is known
    assert "distilled from teacher" in card.text and "`rows.jsonl`" in card.text
    assert "`skew_kl`" in card.text or "divergence = skew_kl" in card.text
    assert f"{finished.before['kl']:.4f} | {finished.after['kl']:.4f}" in card.text
    assert str(Path(config.models.teacher).parent) not in card.content  # no path of this machine


def test_the_card_names_data_by_their_last_part_also_once_they_are_gone(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/books.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "saved").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))

    def card(corpus, train, held_out):
        method = MiniLlm(corpus=corpus, pretraining=1.0)
        given = replace(config.data, train=train, held_out=held_out, held_out_rows=2)
        return student_card(replace(config, method=method, data=given, objective=ObjectiveConfig()), Scores(8))

    written = card("data/books.jsonl", "owner/rows", "saved")
    for corpus in ("./data/books.jsonl", "~/data/books.jsonl", str(tmp_path / "data/books.jsonl")):
        assert card(corpus, "owner/rows", str(tmp_path / "saved")) == written
    assert "| pre-training corpus | `books.jsonl` |" in written and "| training data | `owner/rows` |" in written
    assert "| held-out data | `saved` |" in written and "corpus =" not in written
    (tmp_path / "data/books.jsonl").unlink()
    for corpus in ("data/books.jsonl", "~/data/books.jsonl", str(tmp_path / "data/books.jsonl")):
        assert card(corpus, "owner/rows", str(tmp_path / "saved")) == written
    assert str(tmp_path) not in card(str(tmp_path / "gone"), str(tmp_path / "gone.csv"), str(tmp_path / "x/gone"))


def test_skipped_steps_up_to_the_checkpoint_are_counted_alike_at_the_end_and_by_an_export(
    finished, tmp_path, monkeypatch
):
    shutil.copytree(finished.directory, tmp_path / "run")
    rows = read_metrics(finished.metrics)
    for row in rows:
        row |= {"skipped": 1.0} if row["step"] in (3, 7) else {}
    (tmp_path / "run/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(_export, "_write", lambda config, student, trained, stop_ids, scores, *places: scores)
    run = runs.open_run(tmp_path / "run")
    whole = Scores(8, before=finished.before, after=finished.after, skipped=2)
    assert runs.export_checkpoint(run) == whole
    assert _export.export(run, tmp_path / "run", None, None, (), replace(whole, skipped=0)) == whole
    assert runs.export_checkpoint(run, 6).skipped == 1


def test_the_card_says_which_tokens_counted_and_which_steps_did_not(config):
    budget = SelectionConfig(score="teacher_entropy", fraction=0.25)
    card = student_card(
        replace(config, selection=budget, objective=ObjectiveConfig(verifier="accept_all")), Scores(8, skipped=2)
    )
    assert "| selection | `score = teacher_entropy`, `fraction = 0.25`" in card
    assert "| skipped steps | 2, whose loss or gradient was not finite |" in card
    plain = student_card(config, Scores(8))
    assert "| selection |" not in plain and "skipped" not in plain


@pytest.mark.torch
def test_what_the_card_says_of_loading_runs(finished, capsys, monkeypatch):
    pytest.importorskip("torch")
    import re

    (code,) = re.findall(r"```python\n(.*?)```", (finished.student / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(finished.student)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_license_is_taken_from_the_sources_card_and_never_invented(finished, tmp_path):
    from huggingface_hub import ModelCard

    from selecttkd_jax import models

    base = tmp_path / "base"
    printed_card = "---\nlicense: other\nlicense_name: our-license\nbase_model: owner/big\n---\n# Base\n"
    base.mkdir()
    for path in finished.student.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "README.md").write_text(printed_card)
    origin = models.find_origin(base)
    assert origin == models.Origin("base", "owner/big", {"license": "other", "license_name": "our-license"})
    card = ModelCard(models.write_card("Title: with a colon", "Text.", origin))
    assert card.data.base_model == "owner/big" and card.data.license_name == "our-license"
    for broken in (
        "---\nlicense: [\n---\n",
        "---\nlicense: {a: 1}\n---\n",
        "no front matter",
        "---\n!!python/object:os.system x\n---\n",
    ):
        (base / "README.md").write_text(broken)
        assert models.find_origin(base).license == {}
