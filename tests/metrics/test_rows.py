"""The rows of a run that resumes: each once, from the table where a line is lost, or refused."""

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import MetricsWriter, read_metrics, rows_until

pytestmark = pytest.mark.one_stack


@pytest.fixture
def run(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(6):
        writer.write({"step": step, "loss": 1 / (step + 3)} | ({"held_out/kl": 0.1 + step} if step % 2 == 0 else {}))
    writer.close()
    return tmp_path


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:2] + lines[4:],
        lambda lines: [*lines[:3], lines[3][:10] + "\n", *lines[4:]],
        lambda lines: [*lines[:4], '{"step": 3, "loss": 7.0}\n', *lines[4:]],
        lambda lines: [*lines[:4], '{"step": 4, "loss": NaN}\n', *lines[5:]],
        lambda lines: [*lines, lines[2]],
        lambda lines: lines[::-1],
        lambda lines: [],
    ],
    ids=["gap", "torn", "twice", "nan", "again", "order", "empty"],
)
def test_damaged_rows_come_from_the_table_to_the_last_digit(run, damage):
    whole = rows_until(run, 4)
    (run / "metrics.jsonl").write_text("".join(damage(lines_of(run))))
    assert rows_until(run, 4) == whole and len(whole) == 5
    writer = MetricsWriter(run, 4)
    writer.close()
    assert read_metrics(run / "metrics.jsonl") == whole


def test_a_row_that_is_nowhere_refuses_and_changes_nothing(run):
    lines = lines_of(run)
    (run / "metrics.jsonl").write_text("".join(lines[:2] + lines[4:]))
    (run / "metrics.csv").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="lacks the rows of steps 2 to 3, up to step 5 of the checkpoint"):
        MetricsWriter(run, 5)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert [row["step"] for row in rows_until(run, 1)] == [0, 1]


def test_reading_is_strict_but_for_a_line_that_is_being_written(run):
    path = run / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert len(read_metrics(path)) == 6
    path.write_text('{"loss": 1.0}\n')
    with pytest.raises(InputError, match="line 1 is not a row of numbers with a step"):
        read_metrics(path)


def test_numbers_may_be_added_to_the_last_row(run):
    writer = MetricsWriter(run, 5)
    assert writer.complete(5, {"held_out/kl": 0.25}) == {"step": 5, "loss": 1 / 8, "held_out/kl": 0.25}
    writer.write({"step": 6})
    writer.close()
    assert [len(row) for row in read_metrics(run / "metrics.jsonl")] == [3, 2, 3, 2, 3, 3, 1]
