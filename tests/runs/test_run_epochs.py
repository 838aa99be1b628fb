"""A run by epochs: as many steps as its rows take, also when it resumes."""

import dataclasses

import pytest
from runs.tiny_run import with_output

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import load_config
from selecttkd_jax.training import LoopConfig

pytestmark = pytest.mark.usefixtures("lenient_promotion")


def by_epochs(config, epochs, output, **options):
    training = dataclasses.replace(config.training, epochs=epochs)
    data = dataclasses.replace(config.data, **options)
    return with_output(dataclasses.replace(config, training=training, data=data), output)


def steps_of(run):
    return max(row["step"] for row in read_metrics(run.metrics))


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 5), (1.5, 7)])
def test_epochs_are_counted_in_rows(config, tmp_path, epochs, steps):
    run = runs.train(by_epochs(config, epochs, tmp_path / "run"))  # 18 rows in batches of 4
    assert steps_of(run) == steps
    assert load_config(tmp_path / "run" / "config.toml").training.steps == steps


def test_a_run_by_epochs_resumes_and_fewer_epochs_are_another_run(config, tmp_path, monkeypatch):
    def stop(self, done, total, row):
        assert total == 5
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.train(by_epochs(config, 1.0, tmp_path / "run"))
    with pytest.raises(InputError, match=r"training\.epochs \(1\.0 there, 0\.5 here\)"):
        runs.train(by_epochs(config, 0.5, tmp_path / "run"))
    assert steps_of(runs.train(by_epochs(config, 1.0, tmp_path / "run"))) == 5


def test_packed_epochs_are_shorter(config, tmp_path):
    run = runs.train(by_epochs(config, 1.0, tmp_path / "run", packing="sequences", batch_size=2, max_length=96))
    assert steps_of(run) < 9  # without packing, batches of two


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_number_of_epochs(epochs):
    with pytest.raises(InputError, match="training.epochs must be more than 0"):
        LoopConfig(epochs=epochs)
