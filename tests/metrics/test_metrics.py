import csv
from dataclasses import replace

import pytest

from selecttkd_jax.checks import InputError
from selecttkd_jax.distill import LossSums
from selecttkd_jax.metrics import MetricsWriter, read_metrics, training_means
from selecttkd_jax.plotting import plot_run

SUMS = LossSums(
    loss=3.0, count=2.0, divergence=12.0, weight=5.0, accepted=4.0, tokens=8.0, sequences=2.0, accepted_fraction=1.2
)


def test_means_divide_each_sum_by_its_own_count():
    assert training_means(SUMS) == pytest.approx(
        {"loss": 1.5, "divergence": 1.5, "tar": 0.6, "tar_pooled": 0.5, "mean_weight": 0.625, "tokens": 8.0}
    )


def test_nothing_counted_is_zero_not_nan():
    empty = replace(SUMS, **{name: 0.0 for name in vars(SUMS)})
    assert set(training_means(empty).values()) == {0.0}


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(5):
        writer.write({"step": step, "loss": 5.0 - step})
    writer.close()
    # A kill in the middle of a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write({"step": 3, "loss": 0.5, "held_out/kl": 1.25})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["step", "loss", "held_out/kl"]
    assert table[0]["held_out/kl"] == "" and table[3]["held_out/kl"] == "1.25"


def test_a_process_that_writes_nothing_knows_the_rows_before_it(tmp_path):
    first = MetricsWriter(tmp_path)
    for step in range(3):
        first.write({"step": step, "held_out/kl": 2.0 - step})
    first.close()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    other = MetricsWriter(tmp_path, resume_step=1, writes=False)
    assert other.rows == first.rows[:2]
    other.write({"step": 2, "loss": 0.5})
    other.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files


def test_plot_needs_a_run_with_steps(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "held_out/kl": 2.0}\n{"step": 1, "loss": 1.0, "tar": 0.5}\n')
    (path,) = plot_run(tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
