import csv
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import LossSums
from selecttkd_jax.metrics import MetricsWriter, _writers, read_metrics
from selecttkd_jax.plotting import plot_run

SUMS = LossSums(
    loss=3.0, count=2.0, divergence=12.0, weight=5.0, accepted=4.0, tokens=8.0, sequences=2.0, accepted_fraction=1.2
)


def test_means_divide_each_sum_by_its_own_count():
    assert SUMS.means() == pytest.approx(
        {"loss": 1.5, "divergence": 1.5, "tar": 0.6, "tar_pooled": 0.5, "mean_weight": 0.625, "tokens": 8.0}
    )


def test_nothing_counted_is_zero_not_nan():
    empty = replace(SUMS, **{name: 0.0 for name in vars(SUMS)})
    assert set(empty.means().values()) == {0.0}


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


def sample(step, **changes):
    found = {"step": step, "by": "student", "prompt": "hi", "response": "yes", "marked": "[yes]"}
    return found | changes


def test_samples_are_cut_where_a_run_resumes(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 4):
        writer.write({"step": step})
        # What only str.splitlines takes for an end of line is text.
        writer.write_samples(step, [sample(step, response="né\u2028\x85\n"), sample(step)])
    writer.close()
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    # A kill in the middle of a letter.
    path.write_bytes(whole + '{"step": 4, "prompt": "é'.encode()[:-1])
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write_samples(3, [sample(3, response="né\u2028\x85\n"), sample(3)])
    writer.close()
    assert path.read_bytes() == whole
    assert MetricsWriter(tmp_path, writes=False).rows == []
    assert path.read_bytes() == whole
    MetricsWriter(tmp_path).close()  # from the beginning
    assert path.read_bytes() == b""


def test_a_run_that_writes_no_text_has_no_samples(tmp_path):
    MetricsWriter(tmp_path).close()
    MetricsWriter(tmp_path, writes=False).write_samples(1, [sample(1)])
    assert not (tmp_path / "samples.jsonl").exists()


def test_samples_go_to_weights_and_biases_and_tensorboard_as_text(tmp_path, monkeypatch):
    told, texts = [], []

    class Run:
        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            pass

    class Board:
        def add_text(self, tag, text, step):
            texts.append((tag, text, step))

        def close(self):
            pass

    table = SimpleNamespace(Table=lambda columns, data: (columns, data), init=lambda **options: Run())
    monkeypatch.setitem(sys.modules, "wandb", table)
    monkeypatch.setattr(_writers, "_tensorboard_writer", lambda directory, resume_step: Board())
    writer = MetricsWriter(tmp_path, wandb_project="any")
    writer.write_samples(3, [sample(3), sample(3, marked="a\n\n[b]")])
    writer.close()
    columns = ["by", "prompt", "marked"]
    rows = [["student", "hi", "[yes]"], ["student", "hi", "a\n\n[b]"]]
    assert told == [(3, {"samples/student": (columns, rows)})]
    assert texts[0] == ("samples/student_0", "    hi\n\n    [yes]", 3)
    assert texts[1] == ("samples/student_1", "    hi\n\n    a\n    \n    [b]", 3)


def test_plot_needs_a_run_with_steps(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "held_out/kl": 2.0}\n{"step": 1, "loss": 1.0, "tar": 0.5}\n')
    light, dark = plot_run(tmp_path)
    assert light.read_bytes()[:4] == dark.read_bytes()[:4] == b"\x89PNG"
