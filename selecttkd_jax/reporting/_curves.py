"""Which curves a report shows, and of what."""

import re
from collections.abc import Sequence

from selecttkd_jax.metrics import Row
from selecttkd_jax.reporting._html import figure, legend
from selecttkd_jax.reporting._record import RunRecord
from selecttkd_jax.reporting._svg import Point, Series, line_chart

# Heading, and the metrics that belong together; of several runs each metric has a chart of its own.
_CHARTS = (
    ("Held-out KL(teacher || student), nats", ("held_out/kl",)),
    ("Held-out cross-entropy, nats", ("held_out/cross_entropy", "held_out/teacher_cross_entropy")),
    ("Divergence of the training batches, nats", ("divergence",)),
    ("Token acceptance rate (TAR)", ("tar", "held_out/tar_*")),
    ("Held-out top-1 agreement", ("held_out/top1_agreement",)),
    ("Learning rate", ("learning_rate",)),
    ("Tokens a second", ("tokens_per_second",)),
    ("Gradient norm", ("grad_norm",)),
    ("Length of what was written, tokens", ("rollouts/length", "teacher_rollouts/length")),
)
_SHARES = re.compile(r"(^|/)tar|top1_agreement")
_POSITION = re.compile(r"^(rollouts|teacher_rollouts)/tar_from_(\d+)$")
_LOOKS = 3  # at which TAR by position is drawn, of one run


def draw_curves(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """All charts for which there is anything."""
    figures = []
    for title, patterns in _CHARTS:
        metrics = _find(runs, patterns)
        if len(runs) == 1:
            series = [_series(runs[0], metric, _label(metric), number) for number, metric in enumerate(metrics)]
            chart = line_chart(series, title, share=any(map(_SHARES.search, metrics)))
            figures.append(figure(title, chart, legend([(one.name, one.color) for one in series])))
            continue
        for metric in metrics:
            if metric == "held_out/teacher_cross_entropy":  # the teacher is the same one all along
                continue
            series = [
                _series(run, metric, name, number) for number, (run, name) in enumerate(zip(runs, names, strict=True))
            ]
            about = title if len(patterns) == 1 else f"{title}: {_label(metric)}"
            figures.append(figure(about, line_chart(series, about, share=bool(_SHARES.search(metric)))))
    return "".join(figures)


def draw_positions(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """TAR by the place of a token in the response: of one run as it changed, of several as it was last."""
    figures = []
    for role, title in (("rollouts", "of the student's own text"), ("teacher_rollouts", "of the teacher's text")):
        series: list[Series] = []
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            looks = [(int(row["step"]), found) for row in run.rows if (found := _by_position(row, role))]
            if not looks:
                continue
            if len(runs) > 1:
                series.append(Series(f"{name}, step {looks[-1][0]}", looks[-1][1], number, marked=True))
                continue
            spread = sorted({round(index * (len(looks) - 1) / max(_LOOKS - 1, 1)) for index in range(_LOOKS)})
            series += [
                Series(f"step {looks[at][0]}", looks[at][1], which, marked=True) for which, at in enumerate(spread)
            ]
        about = f"TAR by position, {title}"
        chart = line_chart(series, about, "token of the response", share=True)
        figures.append(figure(about, chart, legend([(one.name, one.color) for one in series])))
    return "".join(figures)


def _find(runs: Sequence[RunRecord], patterns: Sequence[str]) -> list[str]:
    """The metrics that runs have, of those that a chart is about."""
    there = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    expressions = [re.compile(re.escape(pattern).replace(r"\*", r"[^/]+") + "$") for pattern in patterns]
    return [name for expression in expressions for name in sorted(there) if expression.match(name)]


def _series(run: RunRecord, metric: str, name: str, color: int) -> Series:
    points: list[Point] = [(row["step"], row[metric]) for row in run.rows if metric in row]
    return Series(name, points, color, marked=metric.startswith("held_out/"))


def _by_position(row: Row, role: str) -> list[Point]:
    found = []
    for name, value in row.items():
        if (match := _POSITION.match(name)) and match[1] == role:
            found.append((float(match[2]), value))
    return sorted(found)


def _label(metric: str) -> str:
    words = {
        "tar": "training batches",
        "held_out/teacher_cross_entropy": "teacher",
        "held_out/cross_entropy": "student",
    }
    named = words.get(metric, metric.replace("held_out/", "held-out ").replace("tar_", "").replace("_", " "))
    return named
