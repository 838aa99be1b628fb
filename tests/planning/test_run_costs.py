"""What a plan says of a whole run: its hours, its padding, and the text that models write."""

from dataclasses import replace

import jax
import pytest
from planning.conftest import STUDENT, TEACHER

from selecttkd_jax import models, planning, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import main
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm2, Gkd
from selecttkd_jax.planning import _command as command
from selecttkd_jax.planning import _run
from selecttkd_jax.planning._report import padding_report, run_report, writing_report
from selecttkd_jax.runs import save_config
from selecttkd_jax.selection import SelectionConfig

# Eight of this machine's devices at the rates of another one.
TARGET = replace(planning.parse_target("cpu:8"), device=planning.parse_target("gpu:h100:8").device)
DEVICES = jax.devices("cpu")[:8]


@pytest.fixture(scope="module", autouse=True)
def lenient():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def run(config):
    """A run of 30 steps with its pair, its step and that step's costs."""
    training, data = replace(config.training, steps=30, eval_every=12), replace(config.data, packing="off")
    run = replace(config, training=training, data=data)
    pair = runs.abstract_pair(run)
    step = planning.compile_step(run, pair, DEVICES)
    return run, pair, step, planning.estimate(run, TARGET, step)


def test_hours_are_those_of_all_steps_and_evaluations(run):
    config, pair, step, costs = run
    found = _run.run_costs(config, pair, TARGET, DEVICES, step, costs)
    assert found is not None and (found.steps, found.evaluations, found.devices) == (30, 4, 8)  # at 0, 12, 24, 30
    assert found.step_seconds == costs.step_seconds
    assert 0 < found.evaluation_seconds < 4 * costs.step_seconds  # 64 rows in batches of 16, and no gradient
    seconds = 30 * found.step_seconds + 4 * found.evaluation_seconds
    assert found.device_hours == pytest.approx(8 * seconds / 3600)
    said = run_report(replace(found, step_seconds=3600.0, evaluation_seconds=0.0), price=2.5)
    assert "30.00 h at least, 240.00 device-hours, 600.00 at 2.5 an hour" in said
    assert (
        _run.run_costs(config, pair, planning.parse_target("cpu:8"), DEVICES, step, replace(costs, timed=False)) is None
    )


def test_padding_costs_what_packing_saves(run):
    config, pair, step, costs = run
    found = _run.padding(config, pair, TARGET, DEVICES, step, 0.25)
    assert found.costs.step_seconds < costs.step_seconds  # the head visits a quarter of the positions
    assert found.sequences == 8  # of 16 rows: four would do, and each of the mesh's devices has one
    gain = found.costs.step_seconds / found.packed.step_seconds
    assert found.gain == pytest.approx(gain) and 1 < gain < 2
    said = padding_report(config, found)
    assert f"fill 25% of {config.data.max_length} tokens" in said and f"{gain:.2f} times as many" in said


def test_what_is_packed_already_is_told_what_it_costs_alone(run):
    config, pair, step, _ = run
    alone = _run.padding(config, pair, TARGET, DEVICES, step, 0.25)
    packed = replace(config, data=replace(config.data, packing="rows"))
    found = _run.padding(packed, pair, TARGET, DEVICES, step, 0.25)
    assert (found.sequences, found.gain) == (alone.sequences, pytest.approx(alone.gain))


def test_where_rows_cannot_share_sequences_padding_is_told_alone(run):
    config, pair, step, _ = run
    budget = SelectionConfig(score="student_entropy", fraction=0.5, per_sequence=True)
    ranked = replace(config, selection=budget, objective=replace(config.objective, verifier="accept_all"))
    found = _run.padding(ranked, pair, TARGET, DEVICES, step, 0.25)
    assert found.packed is found.gain is None and found.costs.step_seconds is not None
    said = padding_report(ranked, found)
    assert "rows that fill 25%" in said and "Packed: does not apply, since selection.per_sequence" in said


def test_writing_is_planned_for_the_models_that_write(run):
    config, pair, *_ = run
    sampling = Sampling(max_new_tokens=8)
    both = replace(config, method=DistiLlm2(sampling=sampling, teacher_text="written"))
    found = {role.role: role for role in _run.writing(both, pair, TARGET, DEVICES)}
    assert list(found) == ["teacher", "student"]
    for role, decoder in (("teacher", TEACHER), ("student", STUDENT)):
        writing = found[role]
        assert (writing.rows, writing.prompt_length, writing.new_tokens) == (16, config.data.max_length - 8, 8)
        assert writing.weights == 4 * models.count_params(decoder)  # whole on every device, float32 on a CPU
        assert writing.peak > writing.weights
        assert 0 < writing.token_seconds < writing.prefill_seconds
        seconds = writing.prefill_seconds + 7 * writing.token_seconds
        assert writing.tokens_per_second == pytest.approx(16 * 8 / seconds)
    assert "| student" in writing_report(list(found.values()))


def test_a_token_takes_at_least_the_weights_through_memory(run):
    config, pair, *_ = run
    (teacher,) = _run.writing(
        config, pair, TARGET, DEVICES
    )  # no model writes in this method: the teacher, for its data
    assert teacher.role == "teacher" and teacher.rows == 256 * 8
    assert teacher.token_seconds > teacher.weights / TARGET.device.memory_rate


def test_the_command_says_all_of_it(config, tmp_path, capsys, monkeypatch):
    save_config(config, tmp_path / "config.toml")
    monkeypatch.setattr(command, "parse_target", lambda text: TARGET)
    monkeypatch.setattr(command, "target_devices", lambda target: DEVICES)
    words = ["--fill", "0.4", "--generate", "--price-per-hour", "2", "--no-search"]
    assert main(["plan", str(tmp_path / "config.toml"), "--target", "cpu:8", *words]) == 0
    out = capsys.readouterr().out
    for said in (
        "The run of full rows",
        "at 2 an hour",
        "Padding: rows that fill 40%",
        "Packed: in 8 sequences",
        "| writing",
    ):
        assert said in out


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(run):
    config, pair, *_ = run
    longer = replace(config, method=Gkd(sampling=Sampling(max_new_tokens=32)))
    with pytest.raises(InputError, match="max_new_tokens = 32 leaves no room for a prompt in data.max_length = 32"):
        _run.writing(longer, pair, TARGET, DEVICES)


def test_a_packed_step_that_does_not_fit_says_nothing_of_the_configured_one(config, tmp_path, capsys, monkeypatch):
    save_config(config, tmp_path / "config.toml")
    compile_step = _run.compile_step

    def only_unpacked(config, pair, devices):
        if config.data.packing != "off":
            raise planning.TooLargeError("it wants 96 G of 16 G")
        return compile_step(config, pair, devices)

    monkeypatch.setattr(_run, "compile_step", only_unpacked)
    words = ["--fill", "0.4", "--no-search"]
    assert main(["plan", str(tmp_path / "config.toml"), "--target", "cpu:8", *words]) == 0
    out = capsys.readouterr().out
    assert "The packed step does not fit: it wants 96 G" in out and "configured step does not" not in out


def plan_on(memory, config, tmp_path, monkeypatch, *words):
    """The exit code of a plan for eight devices of so many bytes."""
    save_config(config, tmp_path / "config.toml")
    target = replace(TARGET, device=replace(TARGET.device, memory=memory))
    monkeypatch.setattr(command, "parse_target", lambda text: target)
    monkeypatch.setattr(command, "target_devices", lambda target: DEVICES)
    return main(["plan", str(tmp_path / "config.toml"), "--target", "cpu:8", "--no-search", *words])


def test_a_step_that_does_not_fit_is_said_to_and_nothing_is_promised(config, tmp_path, capsys, monkeypatch):
    assert plan_on(10_000, config, tmp_path, monkeypatch, "--fill", "0.4") == 1
    out = capsys.readouterr().out
    assert "It does not fit: " in out and "The run" not in out and "Padding" not in out and "MEM_FRACTION" not in out


def test_a_run_by_epochs_says_why_it_has_no_hours(config, tmp_path, capsys, monkeypatch):
    words = ("--training.epochs", "2", "--price-per-hour", "3")
    assert plan_on(2**33, config, tmp_path, monkeypatch, *words) == 0
    assert "its epochs are counted with the data; give --training.steps" in capsys.readouterr().out


def test_fill_is_for_rows_that_are_not_packed(config, tmp_path, capsys, monkeypatch):
    assert plan_on(2**33, config, tmp_path, monkeypatch, "--fill", "0.4", "--data.packing", "sequences") == 2
    assert "--fill is for rows with padding behind them" in capsys.readouterr().err


def test_a_teacher_that_writes_for_its_data_takes_as_many_rows_as_fit(run):
    config, pair, *_ = run
    whole = _run.writing(config, pair, TARGET, DEVICES)[0]
    narrow = replace(TARGET, device=replace(TARGET.device, memory=int(0.9 * whole.peak), reserve=0.0))
    (half,) = _run.writing(config, pair, narrow, DEVICES)
    assert half.rows == whole.rows / 2 and half.peak <= narrow.device.usable_memory


@pytest.mark.parametrize(("words", "said"), [(["--fill", "1.5"], "fill"), (["--price-per-hour", "-1"], "price")])
def test_options_out_of_range(config, tmp_path, capsys, words, said):
    save_config(config, tmp_path / "config.toml")
    assert main(["plan", str(tmp_path / "config.toml"), "--target", "cpu:8", *words]) == 2
    assert said in capsys.readouterr().err
