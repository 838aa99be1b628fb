"""Runs compared and reported from their files alone: right numbers, nothing loaded, nothing taken for markup."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import main
from selecttkd_jax.reporting import compare, read_run, write_report
from selecttkd_jax.reporting._compare import in_words
from selecttkd_jax.reporting._svg import Series, line_chart, nice_ticks, thin

pytestmark = pytest.mark.one_stack

HOSTILE = "<script>alert('x')</script>\"&\x06"


def make_run(directory, *, rate, steps=4, taken=4, extra="", samples=(), events=()):
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(
        f'output = "{directory.name}"\nseed = 0\n{extra}[models]\nteacher = "a/b"\nstudent = "c"\n'
        f"[optimizer]\nlearning_rate = {rate}\n[training]\nsteps = {steps}\n"
    )
    rows = [{"step": 0, "held_out/kl": 2.0, "held_out/tar_greedy_top_5": 0.5, "held_out/tokens": 100.0}]
    for step in range(1, taken + 1):
        rows.append({"step": step, "divergence": 2.0 / step, "step_seconds": 30.0, "tokens_per_second": 100.0 + step})
    rows[-1] |= {"held_out/kl": 1.25, "held_out/tar_greedy_top_5": 0.75, "held_out/tokens": 100.0}
    rows[-1] |= {"rollouts/tar_from_0": 0.9, "rollouts/tar_from_16": 0.8}
    for name, lines in (("metrics", rows), ("samples", samples), ("events", events)):
        if lines:
            (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


class Page(HTMLParser):
    """Tags and texts of a page, and whether its tags close in order."""

    VOID = ("meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_runs_are_compared_by_what_they_reached_and_where_they_differ(tmp_path, capsys):
    runs = [make_run(tmp_path / "a", rate=0.1), make_run(tmp_path / "b", rate=0.2, steps=9, extra='note = "x"\n')]
    assert main(["compare", *map(str, runs), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differing"] == {
        "note": [None, "x"],
        "optimizer.learning_rate": [0.1, 0.2],
        "training.steps": [4, 9],
    }
    first, second = said["runs"]
    assert (first["state"], second["state"]) == ("4 steps", "step 4 of 9")
    assert first["seconds"] == 120.0 and first["tokens_per_second"] == 102.5 and first["evaluated_at"] == 4
    assert first["held_out"] == {"kl": 1.25, "tar_greedy_top_5": 0.75, "tokens": 100.0}
    assert main(["compare", *map(str, runs)]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("1.2500", "2:00 min", "step 4 of 9", "left out", "0.2"))


def test_sources_a_budget_and_the_median_pace_are_among_what_is_read_first(tmp_path):
    run = make_run(tmp_path / "a", rate=0.1)
    with (run / "config.toml").open("a") as file:
        file.write('[selection]\nscore = "random"\nfraction = 0.25\n[[data.sources]]\npath = "a.jsonl"\nweight = 3\n')
        file.write('[[data.sources]]\npath = "b.jsonl"\ncolumns = ["q", "a"]\n')
    record = read_run(run)
    first = write_report([record], tmp_path / "report.html").read_text().partition("<details>")[0]
    for option in ("data.sources", "selection.score", "selection.fraction"):
        assert option in first
    assert "a.jsonl (weight 3), b.jsonl (columns q a)" in first
    assert (
        "<b>102.5</b>tokens a second (median)" in first and compare([record]).summaries[0]["tokens_per_second"] == 102.5
    )
    assert in_words([{"path": "a.jsonl"}]) == "a.jsonl" and in_words([2, "x"]) == "2 x"


def test_lines_of_metrics_that_are_no_rows_are_left_out_and_named(tmp_path, capsys):
    run = make_run(tmp_path / "a", rate=0.1)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2:3] = [lines[2][:10], '{"loss": 1.0}']
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for words in (["report", str(run)], ["compare", str(run), "--json"]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert "left out: " in err and "line 3 is not valid JSON" in err and "line 4 is not a row of numbers" in err
    (said,) = json.loads(out)["runs"]
    assert said["step"] == 4 and said["seconds"] == 90.0 and said["held_out"]["kl"] == 1.25


def test_neither_jax_nor_matplotlib_is_needed(tmp_path):
    run = make_run(tmp_path / "a", rate=0.1)
    script = (
        "import sys; from selecttkd_jax.cli import main; codes = [main(['compare', sys.argv[1]]), "
        "main(['report', sys.argv[1]])]; heavy = {'jax', 'numpy', 'matplotlib', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else max(codes))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()


def test_nothing_of_a_run_is_taken_for_markup_and_nothing_is_loaded(tmp_path):
    sample = {
        "step": 4,
        "by": HOSTILE,
        "prompt": HOSTILE,
        "tokens": [HOSTILE, f"good {HOSTILE}"],
        "acceptance": [0.1, 0.9],
    }
    broken = {"step": 4, "by": "student", "prompt": "p", "marked": HOSTILE, "tokens": ["a"], "acceptance": []}
    event = {"time": HOSTILE, "event": "warning", "message": HOSTILE}
    start = {"time": "2026-01-01T00:00:00", "event": "start", "packages": {HOSTILE: HOSTILE}, "devices": HOSTILE}
    extra = f"{json.dumps(HOSTILE)} = {json.dumps(HOSTILE)}\n"
    run = make_run(tmp_path / "<b>a&b", rate=0.1, extra=extra, samples=[sample, broken], events=[event, start])
    for runs in ([run], [run, make_run(tmp_path / "other", rate=0.2)]):
        text = write_report([read_run(one) for one in runs], tmp_path / "report.html").read_text()
        page = Page(text)
        assert "script" not in page.tags and text.count("<b>") == text.count('class="tile"><b>')
        assert sum("alert('x')" in part for part in page.texts) >= 6 and "\x06" not in text
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
        assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
        assert "default-src 'none'" in text
        (mark,) = re.findall(r'<mark title="accepted with 0.10">(.*?)</mark>', text)
        assert mark.startswith("&lt;script&gt;")


def test_a_run_that_has_hardly_begun_and_one_that_is_under_way_are_shown(tmp_path, capsys):
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.toml").write_text('output = "young"\n')
    assert main(["report", str(young)]) == 0
    Page((young / "report.html").read_text())
    run = make_run(tmp_path / "run", rate=0.1, steps=100)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "diver')
    (run / "samples.jsonl").write_text('{"torn')
    assert main(["report", str(run)]) == 0
    assert "step 4 of 100, not at its end" in (run / "report.html").read_text()


def test_another_file_is_not_replaced_and_a_report_is(tmp_path, capsys):
    run = make_run(tmp_path / "a", rate=0.1)
    (tmp_path / "mine.html").write_text("<p>precious</p>")
    with pytest.raises(InputError, match="exists and is no report"):
        write_report([read_run(run)], tmp_path / "mine.html")
    for _ in range(2):
        assert main(["report", str(run), "--output", str(tmp_path / "out.html")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine.html", "out.html"}
    for command in ("report", "compare"):
        capsys.readouterr()
        assert main([command, str(tmp_path)]) == 2
        assert "is no run: it holds no config.toml" in capsys.readouterr().err


def test_a_line_lies_where_its_axes_say():
    """The picture read back: the places of the ticks give the scale, by which the line's points are its values."""
    values = [(0, 2.0), (3, 0.5), (10, 1.25)]
    picture = line_chart([Series("one", values)], "label")
    texts = re.findall(r'<text class="axis" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.]+)</text>', picture)
    down = [(float(y) - 4, float(value)) for _, y, anchor, value in texts if anchor == "end"]
    across = [(float(x), float(value)) for x, _, anchor, value in texts if anchor == "middle"]

    def scale(ticks, place):
        (a, va), (b, vb) = ticks[0], ticks[-1]
        return va + (place - a) / (b - a) * (vb - va)

    (line,) = re.findall(r'points="([^"]+)"', picture)
    found = [tuple(map(float, point.split(","))) for point in line.split()]
    read = [(scale(across, x), scale(down, y)) for x, y in found]
    assert read == [pytest.approx(value, abs=0.05) for value in values]


def test_what_is_not_finite_is_left_out_and_long_lines_are_means():
    assert line_chart([Series("one", [(1, float("nan"))])], "label") == ""
    assert "nan" not in line_chart([Series("one", [(1, float("nan")), (2, 1.0)])], "label")
    long = [(step, float(step % 2)) for step in range(1000)]
    assert len(thin(long)) == 250 and thin(long)[0] == (1.5, 0.5)
    for high in (1e-9, 0.3, 1.0, 7.0, 12345.0, 3e12):
        ticks = nice_ticks(0, high)
        assert ticks[0] == 0 and ticks[-1] >= high * (1 - 1e-9) and 2 <= len(ticks) <= 8
