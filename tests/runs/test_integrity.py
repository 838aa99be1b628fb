"""What could be broken, or another thing under the same name, is found and named: numbers, weights, rows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import tiny_run
from runs.tiny_run import with_output
from safetensors.numpy import load_file, save_file

from selecttkd_jax import models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.runs import _prepare, config_from_dict, config_to_dict
from selecttkd_jax.training import LoopConfig

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with all parts of a run, and the run itself, two steps of it done."""
    import jax

    directory = tmp_path_factory.mktemp("begun")
    config = tiny_run.build(directory)
    loop = LoopConfig(steps=2, eval_every=2, save_every=1)
    config = replace(config, training=loop, data=replace(config.data, batch_size=4))
    with jax.numpy_dtype_promotion("standard"):
        runs.train(config)
    # As if it had been stopped after the first step.
    shutil.rmtree(directory / "run/checkpoints/step_2")
    return directory


@pytest.fixture
def parts(begun, tmp_path):
    """A copy of it with paths of its own, and its configuration."""
    shutil.copytree(begun, tmp_path / "parts")
    text = (tmp_path / "parts/run/config.toml").read_text().replace(str(begun), str(tmp_path / "parts"))
    (tmp_path / "parts/run/config.toml").write_text(text)
    return tmp_path / "parts", runs.load_config(tmp_path / "parts/run/config.toml")


def edit_weights(directory, edit):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_one_weight(tensors):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] += np.float32(1e-6)


def test_the_run_that_was_begun_resumes(parts):
    _, config = parts
    assert runs.train(config).after["kl"] > 0


def test_a_teacher_with_one_other_weight_under_the_same_path_resumes_nothing(parts):
    directory, config = parts
    edit_weights(directory / "teacher", change_one_weight)
    with pytest.raises(InputError, match="the teacher's weights, which were others; put them back"):
        runs.train(config)


@pytest.mark.parametrize(
    ("role", "changes", "named"),
    [
        ("teacher", {"rms_norm_eps": 1e-5}, r"the teacher's config: norm_eps \(1e-06 there, 1e-05 here\)"),
        ("student", {"rope_theta": 5000.0}, r"the student's config: rotary.theta \(10000.0 there, 5000.0 here\)"),
    ],
)
def test_a_config_that_changed_is_named_field_by_field(parts, role, changes, named):
    directory, config = parts
    content = json.loads((directory / role / "config.json").read_text())
    if "rope_theta" in changes and "rope_parameters" in content:
        changes = {"rope_parameters": content["rope_parameters"] | changes}
    edit_json(directory / role / "config.json", **changes)
    with pytest.raises(InputError, match=named):
        runs.train(config)


def test_other_rows_are_named(parts):
    directory, config = parts
    lines = (directory / "rows.jsonl").read_text().splitlines()
    (directory / "rows.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    with pytest.raises(InputError, match="the training rows, which were others; put"):
        runs.train(config)
    (directory / "rows.jsonl").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    with pytest.raises(InputError, match="the held-out rows, which were others; put"):
        runs.train(config)


def test_another_chat_template_is_another_tokenizer_even_where_it_writes_the_same(parts):
    directory, config = parts
    for role in ("teacher", "student"):
        for path in (directory / role).glob("tokenizer_config.json"):
            content = json.loads(path.read_text())
            if "chat_template" in content:
                edit_json(path, chat_template=content["chat_template"] + "{# #}")
        for path in (directory / role).glob("chat_template.jinja"):
            path.write_text(path.read_text() + "{# #}")
    with pytest.raises(InputError, match="the tokenizer, which was another"):
        runs.train(config)


def test_a_poisoned_update_is_neither_saved_nor_exported(config, tmp_path):
    """An infinite step from a finite loss: the next run starts from before it."""
    wild = replace(config.optimizer, learning_rate=3e38, clip_norm=0.0, warmup_fraction=0.0, weight_decay=1e5)
    poisoned = replace(
        with_output(config, tmp_path / "run"), optimizer=wild, training=replace(config.training, save_every=1)
    )
    with pytest.raises(InputError, match=r"step 1 \(training rows .*the update left params/.* with NaN or infinity"):
        runs.train(poisoned)
    assert not list((tmp_path / "run/checkpoints").glob("step_*")) and not (tmp_path / "run/student").exists()


def test_logits_that_are_not_finite_are_the_teachers_before_the_first_step(config, tmp_path, monkeypatch):
    """Weights are finite, their products are not."""
    shutil.copytree(config.models.teacher, tmp_path / "teacher")

    def blow_up(tensors):
        for name in tensors:
            if name.endswith("up_proj.weight") or name.endswith("down_proj.weight"):
                tensors[name] = tensors[name] * np.float32(1e30)

    edit_weights(tmp_path / "teacher", blow_up)
    changed = replace(config, models=replace(config.models, teacher=str(tmp_path / "teacher")))
    with pytest.raises(InputError, match=r"held-out batch 1 of .*: the teacher's logits are not finite at \d+ of \d+"):
        runs.evaluate(changed)
    with pytest.raises(InputError, match=r"held-out batch 1 of .*: the teacher's logits are not finite"):
        runs.train(with_output(changed, tmp_path / "run"))


@pytest.mark.parametrize(
    ("section", "option", "value", "named"),
    [
        ("optimizer", "eps", 1e-50, "optimizer.eps = 1e-50 is 0 in float32"),
        ("optimizer", "eps", 1e-40, "optimizer.eps = 1e-40 is 0 in float32"),
        ("optimizer", "weight_decay", 1e39, r"optimizer.weight_decay = 1e\+39 is inf in float32"),
        ("optimizer", "weight_decay", float("inf"), "optimizer.weight_decay = inf is inf"),
        ("optimizer", "b2", 1 - 1e-12, "optimizer.b2 = .* is 1 in float32"),
        ("objective", "floor", 1e-60, "objective.floor = 1e-60 is 0"),
        ("training", "steps", 10**400, "training.steps is beyond 4294967295"),
    ],
)
def test_numbers_that_float32_holds_as_others_are_refused(config, section, option, value, named):
    values = config_to_dict(config)
    values[section] = values[section] | {option: value}
    with pytest.raises(InputError, match=named):
        config_from_dict(values, "here")


def test_rows_longer_than_a_model_was_made_for_are_refused(config, tmp_path):
    shutil.copytree(config.models.teacher, tmp_path / "teacher")
    edit_json(tmp_path / "teacher/config.json", max_position_embeddings=12)
    changed = replace(config, models=replace(config.models, teacher=str(tmp_path / "teacher")))
    with pytest.raises(InputError, match=r"training rows have up to \d+ tokens, and the teacher was made for 12 pos"):
        runs.train(with_output(changed, tmp_path / "run"))
    with pytest.raises(InputError, match="held-out rows have up to"):
        runs.evaluate(changed)
    assert not (tmp_path / "run").exists()


def test_held_out_rows_cut_from_training_rows_that_repeat_are_reported(config, tmp_path, caplog):
    lines = Path(config.data.train).read_text().splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join(lines * 2) + "\n")
    with caplog.at_level("WARNING"):
        _prepare.read_split(replace(config.data, train=str(tmp_path / "twice.jsonl")))
    assert "5 of 5 held-out rows are training rows too" in caplog.text


def test_one_row_a_batch(config, tmp_path):
    one = replace(
        with_output(config, tmp_path / "run"),
        data=replace(config.data, batch_size=1),
        training=LoopConfig(steps=2, eval_every=2, save_every=2),
    )
    assert runs.train(one).after["tokens"] > 0


def test_fingerprints_of_files_tell_two_trainings_apart(config, tmp_path):
    shutil.copytree(config.models.teacher, tmp_path / "teacher")
    assert models.fingerprint_files(tmp_path / "teacher") == models.fingerprint_files(config.models.teacher)
    edit_weights(tmp_path / "teacher", change_one_weight)  # small tensors are read whole
    assert models.fingerprint_files(tmp_path / "teacher") != models.fingerprint_files(config.models.teacher)


def test_a_file_with_a_byte_order_mark_is_read(config, tmp_path):
    runs.save_config(config, tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_bytes()
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf" + text)
    assert runs.load_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize("value", ["[" * 10_000, "seed = " + "9" * 5000])
def test_files_that_break_the_parser_are_refused_in_a_sentence(tmp_path, value):
    (tmp_path / "config.toml").write_text(value)
    with pytest.raises(InputError, match="config.toml is not valid TOML"):
        runs.load_config(tmp_path / "config.toml")


def test_generation_compares_with_the_context_of_the_model(config, tmp_path, caplog):
    from selecttkd_jax.data import Record
    from selecttkd_jax.generation import Sampling

    shutil.copytree(config.models.teacher, tmp_path / "teacher")
    edit_json(tmp_path / "teacher/config.json", max_position_embeddings=24)
    short = Record(({"role": "user", "content": "the cat"},))
    long = Record(({"role": "user", "content": "the cat sat on a mat " * 9},), source="prompts.jsonl line 7")
    with caplog.at_level("WARNING"):
        runs.generate(str(tmp_path / "teacher"), [short], Sampling(temperature=0.0, max_new_tokens=24))
    assert "an answer may have 24 more, but the model was made for 24 positions" in caplog.text
    with pytest.raises(
        InputError, match=r"prompts.jsonl line 7: the prompt has \d+ tokens, and the model was made for 24"
    ):
        runs.generate(str(tmp_path / "teacher"), [short, long], Sampling(temperature=0.0, max_new_tokens=4))


def test_adapters_resume_on_the_base_they_were_trained_on_and_no_other(parts):
    directory, config = parts
    adapters = replace(
        with_output(config, directory / "adapters"),
        lora=models.LoraConfig(rank=2),
        training=LoopConfig(steps=2, eval_every=2, save_every=1),
    )
    runs.train(adapters)
    shutil.rmtree(directory / "adapters/checkpoints/step_2")
    edit_weights(directory / "student", change_one_weight)
    with pytest.raises(InputError, match="the frozen weights of the student, which were others"):
        runs.train(adapters)
