"""The race measures what it says: turns, agreement, memory; and the README shows what the CSV files hold."""

import subprocess
import sys
import textwrap
from pathlib import Path

import contest
import numpy as np
import pytest
import report
from contest import Contender, race

RACE = Path(contest.__file__).parent


def contender(name, turn, tail=""):
    """A contender in a few lines; `turn` is its work."""
    code = f"""
        import sys, time
        sys.path.insert(0, {str(RACE)!r})
        from channel import Channel, serve
        import numpy as np
        channel = Channel()
        print("a library that prints")
        channel.ready(versions="none")
        def work():
            {turn}
        serve(channel, work)
        {tail}
    """
    return Contender(name, [sys.executable, "-c", textwrap.dedent(code)])


def agreeing(name, loss="2.0", gradient="np.ones(3, np.float32)"):
    return contender(name, f"return {{'loss': {loss}, 'accepted': 3}}, {{'gradient': {gradient}}}")


def test_contenders_work_one_at_a_time_and_in_changing_order(tmp_path):
    work = "start = time.monotonic(); time.sleep(0.05); return {'start': start, 'end': time.monotonic()}, {}"
    results = race([contender(name, work) for name in "abc"], 3, tmp_path)
    rounds = list(zip(*(result.answers for result in results.values()), strict=True))
    assert len(rounds) == 3
    order = [
        [name for _, name in sorted(zip([turn["start"] for turn in turns], "abc", strict=True))] for turns in rounds
    ]
    assert order == [list("bca"), list("cab"), list("abc")]
    turns = sorted((turn["start"], turn["end"]) for turns in rounds for turn in turns)
    assert all(end <= start for (_, end), (start, _) in zip(turns, turns[1:], strict=False))
    assert all(0.05 <= seconds < 1 for result in results.values() for seconds in result.column("seconds"))


def test_a_contender_that_agrees_may_race(tmp_path):
    results = race([agreeing("first"), agreeing("second", "2.0002")], 1, tmp_path, ["gradient"])
    assert results["second"].difference == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "second",
    [
        agreeing("second", loss="2.003"),
        agreeing("second", loss="float('nan')"),
        agreeing("second", gradient="np.array([1, 1, 1.01], np.float32)"),
        agreeing("second", gradient="np.array([1, 1, np.nan], np.float32)"),
        agreeing("second", gradient="np.ones(4, np.float32)"),
        contender("second", "return {'loss': 2.0, 'accepted': 2}, {}"),
    ],
    ids=["loss", "nan loss", "gradient", "nan gradient", "size", "acceptance"],
)
def test_one_that_computes_something_else_ends_the_race(tmp_path, second):
    with pytest.raises(contest.Disagreement, match="second"):
        race([agreeing("first"), second], 1, tmp_path, ["gradient"])


def test_a_contender_that_dies_is_named_with_its_last_words(tmp_path):
    with pytest.raises(contest.ContenderFailed, match="(?s)unlucky ended with exit code 1.*no memory left"):
        race([contender("unlucky", "raise MemoryError('no memory left')")], 1, tmp_path)


def test_peak_memory_is_the_contenders_own(tmp_path):
    kept = "global held; held = np.ones(50 * 2**17); return {}, {}"  # 50 MiB
    lean, fat = (
        contest.measure_peak(contender(name, work), tmp_path, turns=1).peak_mib
        for name, work in (("lean", "return {}, {}"), ("fat", kept))
    )
    assert 45 < fat - lean < 60


def test_differences_are_relative_over_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "BLOCK", 7)
    generator = np.random.default_rng(0)
    expected = generator.standard_normal(23).astype(np.float32)
    other = expected + 0.1 * generator.standard_normal(23).astype(np.float32)
    expected.tofile(tmp_path / "expected")
    other.tofile(tmp_path / "other")
    assert contest.relative_difference(tmp_path / "other", tmp_path / "expected") == pytest.approx(
        np.linalg.norm(other.astype(float) - expected) / np.linalg.norm(expected.astype(float)), rel=1e-6
    )


@pytest.mark.torch
def test_the_whole_race_in_miniature(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, RACE / "run.py", "--quick", "--rounds", "1", "--torch-python", sys.executable]
    run = subprocess.run([*map(str, command), "--output", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = {path.stem: report.read(path) for path in tmp_path.glob("race_*.csv")}
    assert set(rows) == {"race_loss", "race_step", "race_selection", "race_chunks"}
    raced = [row for row in rows["race_loss"] if row["median_s"]]
    assert {row["contender"] for row in raced} == {"torch_eager", "ours", "torch_products", "jax_products"}
    assert {row["counted"] for row in raced} == {"16", "6"}
    for row in (row for row in rows["race_step"] + raced if row["contender"] == "ours"):
        assert float(row["difference"]) < 1e-4 and float(row["peak_mib"]) > 50
    assert [row["contender"] for row in rows["race_selection"]] == ["accept_all", "spec_k"]
    assert [row["chunk_size"] for row in rows["race_chunks"]] == ["4", "16"]
    assert "| ours |" in report.render(tmp_path)
    report.plot(rows["race_chunks"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_readme_shows_what_the_csv_files_hold():
    tables = report.render(report.RESULTS)
    _, _, rest = report.README.read_text(encoding="utf-8").partition(report.BEGIN)
    assert rest.partition(report.END)[0].strip() == tables
