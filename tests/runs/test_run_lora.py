"""Whole runs that train adapters, and a teacher in int8."""

import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs.test_run import rows_of
from runs.tiny_run import assert_rows_before, with_output

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.evaluation import HeldOut
from selecttkd_jax.runs import _load, _prepare
from selecttkd_jax.sharding import make_mesh
from selecttkd_jax.training import Frozen

pytestmark = pytest.mark.usefixtures("lenient_promotion")

LORA = models.LoraConfig(rank=2, alpha=8.0, dora=True)


@pytest.fixture(scope="module")
def adapting(config):
    """The tiny run with adapters, a base in bfloat16 and a teacher in int8."""
    parts = replace(config.models, student_dtype="bfloat16", teacher_dtype="int8")
    training = replace(config.training, steps=4, eval_every=4)
    return replace(config, lora=LORA, models=parts, training=training)


@pytest.fixture(scope="module")
def whole(adapting, tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return runs.train(with_output(adapting, tmp_path_factory.mktemp("lora") / "run"))


def test_the_rows_are_those_from_before_there_were_methods(whole):
    assert_rows_before(rows_of(whole.directory), "dora, bfloat16 base, int8 teacher")


def test_the_merged_student_is_the_base_with_the_adapter_and_what_was_evaluated(whole, adapting):
    assert whole.after["kl"] < whole.before["kl"]
    base = models.from_pretrained(adapting.models.student, jax.numpy.bfloat16)
    config, lora = models.load_adapter(whole.adapter, base.config)
    assert config == LORA
    merged = models.merge_lora(base.params, lora, config)
    exported = models.from_pretrained(whole.student)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(np.asarray(ours, np.float32), theirs),
        merged,
        exported.params,
    )
    student = replace(adapting.models, student=str(whole.student), student_dtype="float32")
    assert runs.evaluate(replace(adapting, models=student)) == pytest.approx(whole.after, rel=1e-4)


def test_checkpoints_hold_adapters_alone(whole):
    newest = max((whole.directory / "checkpoints").glob("step_*"))
    names = (newest / "state" / "_METADATA").read_text()
    assert "magnitude" in names and "embedding" not in names and "kernel" not in names


def test_a_resumed_run_of_adapters_equals_the_uninterrupted_one_exactly(whole, adapting, tmp_path):
    """What a kill after step 3 leaves: its checkpoint, and neither a later one nor an export."""
    shutil.copytree(whole.directory, tmp_path / "run")
    for name in ("checkpoints/step_4", "student", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    resumed = runs.train(with_output(adapting, tmp_path / "run"))
    assert rows_of(resumed.directory) == rows_of(whole.directory)
    ours, theirs = (run.adapter / "adapter_model.safetensors" for run in (resumed, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_checkpoint_of_adapters_exports_to_both_models_byte_for_byte(whole, tmp_path, adapting):
    """Compiled without a mesh here, with one there; and only onto the weights that the adapters were trained on."""
    run = runs.open_run(whole.directory)
    student, adapter = runs.export_checkpoint(run, 4, tmp_path / "out")
    assert adapter == tmp_path / "out-adapter"
    for ours, theirs in ((student, whole.student), (adapter, whole.adapter)):
        for path in theirs.iterdir():
            assert (ours / path.name).read_bytes() == path.read_bytes(), path
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card and "`rank = 2`" in card
    other = replace(run, models=replace(run.models, student=str(tmp_path / "base")))
    base = models.from_pretrained(adapting.models.student)
    models.save_pretrained(tmp_path / "base", replace(base, params=jax.tree.map(lambda leaf: leaf * 1.5, base.params)))
    with pytest.raises(InputError, match="other weights than the adapters were trained on"):
        runs.export_checkpoint(other, 4, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_full_training_does_not_resume_adapters(whole, adapting):
    full = replace(adapting, lora=None, models=replace(adapting.models, student_dtype="float32"))
    with pytest.raises(InputError, match=r"different run: .*lora \(.* there, None here\)"):
        runs.train(with_output(full, whole.directory))


def test_the_log_says_what_an_int8_teacher_costs(adapting, caplog):
    adapting = adapting.on_platform("cpu")
    prepared = _prepare.prepare(adapting)
    mesh = make_mesh(adapting.mesh)
    _, shardings = runs.model_shardings(mesh, adapting, prepared.pair)
    with jax.set_mesh(mesh), caplog.at_level("INFO"):
        quantised = _load.load_teacher(mesh, adapting, prepared.pair, prepared.held_out_rows, shardings)
    said = re.search(
        r"int8 teacher: KL\(float32 teacher \|\| int8 teacher\) = (\S+) nats.* of (\d+) held-out", caplog.text
    )
    exact = models.from_pretrained(adapting.models.teacher).params
    pair = replace(prepared.pair, student=prepared.pair.teacher)
    batches = data.eval_batches(prepared.held_out_rows, 4, adapting.data.max_length)
    expected = HeldOut(pair, Frozen(teacher=exact), batches, {})(quantised)
    assert said is not None and float(said[1]) == pytest.approx(expected["kl"], rel=0.01) and expected["kl"] > 1e-7
    assert int(said[2]) == expected["tokens"]
