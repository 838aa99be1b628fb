"""What a person sees of a run while it runs."""

import io
import logging
import sys
import time

import pytest
from rich.console import Console

from selecttkd_jax import progress
from selecttkd_jax.progress import StepProgress

ROW = {"divergence": 123.45678, "tar": 0.61234, "loss": 99.5, "step_seconds": 1.934}
WRITING = ROW | {"learning_seconds": 0.75, "rollouts/length": 17.0}
TUNED = {"cross_entropy": 123.45678, "loss": 99.5, "step_seconds": 1.934}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def informed(caplog):
    """What other tests have set the log to is not what is tested here."""
    caplog.set_level(logging.INFO, logger="selecttkd_jax")


def lines_on_a_terminal(monkeypatch, rows, total, width=80):
    """The lines that the bar takes after the last row, as they stand on a terminal of this width."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with StepProgress(1) as shown:
        for step, row in rows:
            shown(step, total, row)
        out = io.StringIO()
        Console(file=out, width=width).print(shown._bar.get_renderable())
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    "row, measure", [(ROW, "held_out/kl"), (TUNED, "held_out/cross_entropy"), (WRITING, "held_out/kl")]
)
def test_the_bar_fits_eighty_columns_with_long_numbers_and_hours_left(monkeypatch, row, measure):
    clock = iter(range(0, 10**6, 120))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rows = [(123_455, row), (123_456, {**row, measure: 123.45678})]
    (line,) = lines_on_a_terminal(monkeypatch, rows, 123_500)
    assert len(line) <= 80 and "123456/123500" in line
    assert "left" in line and "123.457" in line
    assert line.index("123456/") < line.index("123.457")


def test_a_narrow_terminal_cuts_and_does_not_wrap(monkeypatch):
    assert len(lines_on_a_terminal(monkeypatch, [(1, ROW), (2, ROW)], 200, width=40)) == 1


def test_the_log_leads_with_divergence_and_acceptance(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = iter((0.0, 4.0, 8.0, 12.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO"), StepProgress(1) as shown:
        shown(0, 200, {"step": 0, "held_out/kl": 9.1656})
        shown(2, 200, ROW)
        shown(3, 200, TUNED)
        shown(4, 200, WRITING)
    assert caplog.messages == [
        "step 0/200  held-out KL 9.166 (step 0)",
        "step 2/200  divergence 123.457  TAR 0.612  held-out KL 9.166 (step 0)  1.93 s/step  6:36 left",
        "step 3/200  cross-entropy 123.457  held-out KL 9.166 (step 0)  1.93 s/step  8:45 left",
        "step 4/200  divergence 123.457  TAR 0.612  held-out KL 9.166 (step 0)  1.93 s/step  writing 61%  9:48 left",
    ]


def test_a_quiet_run_shows_nothing(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.WARNING, "selecttkd_jax"), StepProgress(1) as shown:
        shown(1, 2, ROW)
    assert not sys.stderr.getvalue() and not caplog.messages


def test_other_long_work_fits_too():
    bar = progress._bar("evaluating")
    bar.add_task("evaluating", total=999_999, completed=123_456, note="")
    out = io.StringIO()
    Console(file=out, width=80).print(bar.get_renderable())
    (line,) = out.getvalue().splitlines()
    assert "evaluating" in line and "123456/999999" in line
