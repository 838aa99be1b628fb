"""A run from start to export, resumed after a kill, and refused where it must not go."""

import csv
import dataclasses
import gc
import json
import shutil
import signal
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from runs.tiny_run import assert_rows_before, with_output

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax._signals import Interrupted
from selecttkd_jax.metrics import MetricsWriter, read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import _evaluators, _output, _prepare, _train, load_config
from selecttkd_jax.runs._output import lock_output
from selecttkd_jax.sharding import place_batch
from selecttkd_jax.training import latest_step

pytestmark = pytest.mark.usefixtures("lenient_promotion")

# Clocks differ from run to run; everything else has to be equal to the last digit.
CLOCKS = {"step_seconds", "tokens_per_second"}


def rows_of(run_directory):
    return [
        {name: value for name, value in row.items() if name not in CLOCKS}
        for row in read_metrics(Path(run_directory) / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run."""
    with jax.numpy_dtype_promotion("standard"):
        return runs.train(with_output(config, tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_leaves_everything_a_user_looks_for(whole, config):
    rows = rows_of(whole.directory)
    assert [row["step"] for row in rows] == list(range(9))
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert whole.after["kl"] < whole.before["kl"]
    assert "held_out/kl" in rows[4] and "held_out/kl" not in rows[5]
    with (whole.directory / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 9 and float(table[8]["loss"]) == rows[8]["loss"] and table[5]["held_out/kl"] == ""
    assert load_config(whole.directory / "config.toml") == with_output(config, whole.directory).on_platform("cpu")
    assert whole.plots and all(path.read_bytes()[:4] == b"\x89PNG" for path in whole.plots)
    assert list((whole.directory / "tensorboard").iterdir())


def test_the_rows_are_those_from_before_there_were_methods(whole):
    assert_rows_before(rows_of(whole.directory), "spec_k in two micro-batches")


def test_the_exported_student_stops_where_its_rows_end_and_not_where_its_base_did(whole, config):
    generation = json.loads((whole.student / "generation_config.json").read_text())
    stops = data.stop_ids(data.load_tokenizer(config.models.teacher), config.models.teacher)
    assert stops == (2,)
    assert generation == {"eos_token_id": 2, "temperature": 0.7}
    assert json.loads((whole.student / "config.json").read_text())["eos_token_id"] == 2


def test_the_exported_student_is_the_one_that_was_evaluated(whole, config):
    from dataclasses import replace

    exported = replace(config, models=replace(config.models, student=str(whole.student)))
    assert runs.evaluate(exported) == pytest.approx(whole.after, rel=1e-6)
    assert "lm_head.weight" not in (whole.student / "model.safetensors").read_bytes()[:10000].decode("latin1")
    assert (whole.student / "tokenizer.json").is_file()
    assert models.from_pretrained(whole.student).config.num_layers == 2


def interrupt_at(monkeypatch, step):
    shown = StepProgress.__call__

    def show(self, done, total, row):
        shown(self, done, total, row)
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepProgress, "__call__", show)


def keep_references(patch, fresh):
    """Notes of every array of a new state whether it is still there when a checkpoint is read: two may not fit."""
    init_state, restore = _train.init_state, _train.Checkpoints.restore

    def init(*arguments, **options):
        state = init_state(*arguments, **options)
        fresh.extend([weakref.ref(leaf), True] for leaf in jax.tree.leaves(state) if leaf.size > 1)
        return state

    def restoring(self, template):
        gc.collect()
        for entry in fresh:
            entry[1] = entry[0]() is not None
        return restore(self, template)

    patch.setattr(_train, "init_state", init)
    patch.setattr(_train.Checkpoints, "restore", restoring)


def test_a_resumed_run_equals_the_uninterrupted_one_exactly(whole, config, tmp_path, monkeypatch):
    """Interrupted at step 5, checkpoint at step 3: steps 4 and 5 are taken again; Spec-k draws and data included."""
    interrupted = with_output(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            runs.train(interrupted)
    assert rows_of(tmp_path / "run")[-1]["step"] == 5
    # What a kill during the next save would leave behind.
    torn = tmp_path / "run" / "checkpoints" / "step_6.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "half").write_text("x")
    with monkeypatch.context() as patch:
        fresh = []
        keep_references(patch, fresh)
        resumed = runs.train(interrupted)
    assert fresh and not any(alive for _, alive in fresh)
    assert rows_of(resumed.directory) == rows_of(whole.directory)
    ours, theirs = models.from_pretrained(resumed.student), models.from_pretrained(whole.student)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_a_finished_run_started_again_changes_nothing(whole, config):
    before = rows_of(whole.directory)
    again = runs.train(with_output(config, whole.directory))
    assert rows_of(whole.directory) == before and again.after == whole.after


def test_a_finished_run_started_again_ends_well_in_a_process_that_writes_nothing(whole, config, monkeypatch):
    """All processes but the first one of several."""
    monkeypatch.setattr(_train, "MetricsWriter", lambda *about, writes: MetricsWriter(*about, writes=False))
    again = runs.train(with_output(config, whole.directory))
    assert again.before == whole.before and again.after == whole.after


def test_another_config_on_the_same_output_is_refused_and_names_the_option(whole, config):
    from dataclasses import replace

    other = replace(with_output(config, whole.directory), seed=1)
    with pytest.raises(InputError, match=r"belongs to a different run: seed \(0 there, 1 here\)"):
        runs.train(other)


def test_a_start_that_saved_nothing_may_be_corrected(config, tmp_path, monkeypatch):
    from dataclasses import replace

    first = with_output(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            runs.train(first)
    corrected = replace(first, training=replace(first.training, steps=3, eval_every=3))
    finished = runs.train(corrected)
    assert [row["step"] for row in rows_of(finished.directory)] == [0, 1, 2, 3]
    assert load_config(tmp_path / "run" / "config.toml") == corrected.on_platform("cpu")


def test_a_head_narrower_than_the_tokenizer_is_found_before_anything_is_written(config, tmp_path):
    from dataclasses import replace

    wide = models.from_pretrained(config.models.student)
    narrow = models.Pretrained(
        replace(wide.config, vocab_size=200),
        {**wide.params, "embedding": wide.params["embedding"][:200]},
        {**wide.hf_config, "vocab_size": 200},
        wide.source,
    )
    models.save_pretrained(tmp_path / "narrow", narrow)
    changed = replace(config, models=replace(config.models, student=str(tmp_path / "narrow")))
    with pytest.raises(InputError, match="resize the narrower one"):
        runs.train(with_output(changed, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_held_out_rows_that_are_trained_on_are_reported(config, caplog):
    from dataclasses import replace

    same = replace(config.data, held_out=config.data.train)
    with caplog.at_level("WARNING"):
        _prepare.prepare(replace(config, data=same))
    assert "5 of 5 held-out rows are training rows too" in caplog.text


def test_evaluation_takes_no_more_rows_at_once_than_a_step(config, tmp_path, monkeypatch):
    from dataclasses import replace

    taken = []
    for module in (_train, _evaluators):
        monkeypatch.setattr(
            module,
            "place_batch",
            lambda mesh, batch, rows: (taken.append(len(batch.input_ids)), place_batch(mesh, batch, rows))[1],
        )
    rows, parts = config.data.batch_size, 2
    assert rows % parts == 0
    cut = replace(config, training=replace(config.training, micro_batches=parts, steps=1))
    found = runs.train(with_output(cut, tmp_path / "run"))
    assert set(taken) == {rows, rows // parts}  # of training, and of evaluation
    whole = runs.train(with_output(replace(config, training=replace(config.training, steps=1)), tmp_path / "whole"))
    assert found.before == pytest.approx(whole.before, rel=1e-5)


def test_a_directory_with_other_files_is_refused_untouched(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds files but no run"):
        runs.train(with_output(config, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(config, tmp_path):
    from dataclasses import replace

    wild = replace(config.optimizer, learning_rate=1e30, clip_norm=0.0, warmup_fraction=0.0)
    impatient = replace(config, optimizer=wild, training=replace(config.training, max_skipped=0))
    with pytest.raises(InputError, match="1 step in a row skipped .*learning_rate"):
        runs.train(with_output(impatient, tmp_path / "run"))
    assert not any((tmp_path / "run").glob("checkpoints/step_*"))


def test_generate_answers_every_prompt_in_order(config):
    from selecttkd_jax.data import Record
    from selecttkd_jax.generation import Sampling

    records = [Record(({"role": "user", "content": text},)) for text in ("the cat", "a mat and ate red fish", "dogs")]
    sampling = Sampling(temperature=0.0, max_new_tokens=4)
    together = runs.generate(config.models.teacher, records, sampling)
    alone = [runs.generate(config.models.teacher, [record], sampling)[0] for record in records]
    assert together == alone


def test_metric_rows_are_json_without_nan(whole):
    for line in (whole.directory / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl"))


def without_teacher(config):
    from dataclasses import replace

    from selecttkd_jax.distill import ObjectiveConfig
    from selecttkd_jax.methods import Sft

    return replace(config, method=Sft(), objective=ObjectiveConfig(), models=replace(config.models, teacher=None))


def test_a_student_is_fine_tuned_without_a_teacher(config, tmp_path):
    finished = runs.train(with_output(without_teacher(config), tmp_path / "run"))
    assert finished.measure == "cross_entropy" and not finished.worsened
    rows = rows_of(finished.directory)
    assert rows[8]["cross_entropy"] < rows[1]["cross_entropy"] and "tar" not in rows[1]
    assert set(finished.after) == {"cross_entropy", "tokens"}
    assert runs.train(with_output(without_teacher(config), tmp_path / "run")).after == finished.after


def test_fine_tuning_with_a_teacher_is_compared_with_it(whole, config, tmp_path):
    from dataclasses import replace

    compared = replace(without_teacher(config), models=config.models)
    finished = runs.train(with_output(compared, tmp_path / "run"))
    assert finished.measure == "cross_entropy" and not finished.worsened
    assert finished.before["kl"] == whole.before["kl"]


@pytest.fixture
def finished(whole, config, tmp_path):
    """A private copy of the uninterrupted run, and its configuration."""
    run = tmp_path / "run"
    shutil.copytree(whole.directory, run)
    return run, with_output(config, run)


def test_lost_metrics_come_from_the_table_or_the_run_does_not_go_on(finished, whole):
    run, config = finished
    (run / "metrics.jsonl").unlink()
    again = runs.train(config)
    assert again.before == whole.before and again.after == whole.after and rows_of(run) == rows_of(whole.directory)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.csv").unlink()
    with pytest.raises(InputError, match="lacks the rows of steps 1 to 8, up to step 8 of the checkpoint"):
        runs.train(config)


def test_a_run_is_finished_though_its_checkpoints_were_deleted_and_one_that_is_not_cannot_go_on(
    finished, whole, caplog
):
    run, config = finished
    shutil.rmtree(run / "checkpoints")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        again = runs.train(config)
    assert "is finished: step 8, and its checkpoints were deleted" in caplog.text
    assert (again.before, again.after, again.student) == (whole.before, whole.after, run / "student")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    shutil.rmtree(run / "student")
    with pytest.raises(InputError, match="holds a run of 8 steps without its checkpoints"):
        runs.train(config)
    assert (run / "metrics.jsonl").read_bytes() == files[run / "metrics.jsonl"]


def test_a_second_run_in_one_output_is_refused_while_the_first_one_lives(finished):
    run, config = finished
    with lock_output(run), pytest.raises(InputError, match=f"another process trains in output {run}"):
        runs.train(config)
    runs.train(config)


def test_what_killed_processes_left_is_gone_after_the_next_start(finished):
    run, config = finished
    for name in (".student.x.unfinished", "checkpoints/step_9.orbax-checkpoint-tmp"):
        (run / name).mkdir()
    (run / ".config.toml.y.unfinished").write_text("output")
    (run / "student").rename(run / ".student.z.replaced")
    runs.train(config)
    left = [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert left == [] and (run / "student").is_dir() and not list((run / "checkpoints").glob("*tmp*"))


def test_an_output_that_cannot_be_written_or_has_no_room_is_one_line_before_anything_is_computed(
    config, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(_output.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"has room for 0\.00 GiB, and a checkpoint takes 0\.00; free some"):
        runs.train(with_output(config, tmp_path / "run"))


def signal_at(patch, step, signum):
    """A signal to this process once a step was shown: the next one has begun by then."""
    shown = StepProgress.__call__

    def show(self, done, total, row):
        shown(self, done, total, row)
        if done == step:
            signal.raise_signal(signum)

    patch.setattr(StepProgress, "__call__", show)


@pytest.mark.parametrize("step, signum, saved", [(4, signal.SIGTERM, 5), (3, signal.SIGINT, 4), (7, signal.SIGTERM, 8)])
def test_a_signal_ends_a_run_with_its_step_saved_and_it_resumes_to_the_same_end(
    whole, config, tmp_path, monkeypatch, step, signum, saved
):
    """Step 4 is evaluated, step 8 is the last one: there the held-out numbers are left to the run that resumes."""
    told = with_output(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_at(patch, step, signum)
        with pytest.raises(Interrupted, match=f"step {saved} is saved") as ended:
            runs.train(told)
    assert ended.value.signum == signum and latest_step(tmp_path / "run" / "checkpoints") == saved
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["step"] == saved and "held_out/kl" not in rows[-1]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == saved + 1
    resumed = runs.train(told)
    assert rows_of(resumed.directory) == rows_of(whole.directory)
    assert (resumed.student / "model.safetensors").read_bytes() == (whole.student / "model.safetensors").read_bytes()


def test_a_batch_that_breaks_a_step_is_skipped_and_kept(config, tmp_path, monkeypatch):
    """The third step's rows have a position that the model's rotary tables turn into NaN."""
    placed = []

    def place(mesh, batch, rows):
        placed.append(batch)
        if len(placed) == 3:
            batch = dataclasses.replace(batch, positions=np.where(batch.loss_mask, np.float32("nan"), batch.positions))
        return place_batch(mesh, batch, rows)

    monkeypatch.setattr(_train, "place_batch", place)
    few = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=4))
    finished = runs.train(with_output(few, tmp_path / "run"))
    assert finished.skipped == 1
    kept = json.loads((tmp_path / "run" / "bad_batches" / "step-3.json").read_text())
    assert kept["step"] == 3 and "rows" in kept and kept["input_ids"] == placed[2].input_ids.tolist()
    assert len(kept["input_ids as text"]) == 4 and len(kept["verification_key"]) == 2


def test_a_student_is_not_replaced_by_another_run_where_the_checkpoints_are_gone(config, tmp_path):
    from dataclasses import replace

    finished = runs.train(with_output(config, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/checkpoints")
    student = (finished.student / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="belongs to a different run: seed"):
        runs.train(replace(with_output(config, tmp_path / "run"), seed=1))
    assert (finished.student / "model.safetensors").read_bytes() == student


def test_a_method_that_needs_a_teacher_says_so(config):
    from dataclasses import replace

    with pytest.raises(InputError, match="models.teacher is missing: method kd learns from one"):
        replace(config, models=replace(config.models, teacher=None))


def test_a_run_has_the_same_rows_on_the_next_day(tmp_path, monkeypatch):
    import datetime

    from data.small_tokenizers import CHATML
    from runs.tiny_run import build
    from transformers.utils import chat_template_utils

    config = build(tmp_path)
    dated = "{{ strftime_now('%d %B %Y') + '<|im_end|>' }}" + CHATML
    for directory in (config.models.teacher, config.models.student):
        (Path(directory) / "chat_template.jinja").write_text(dated)

    def fingerprint(day, config=config):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime(2026, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        return _prepare.prepare(config).train_rows.fingerprint

    assert fingerprint(1) == fingerprint(2)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, date="2026-03-02"))
    assert fingerprint(2, other) != fingerprint(2)
