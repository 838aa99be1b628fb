"""Figures from a run's metrics file."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import write_file
from selecttkd_jax.metrics import Row, read_metrics

BLUE, ORANGE, GREY = "#1f5fa8", "#d1600a", "#8a8a8a"


def plot_run(directory: str | Path) -> list[Path]:
    """Draws divergence, held-out KL and token acceptance rate over the steps.

    The loss is drawn thin: where tokens are selected it rises with the share of them that count, and says nothing of
    quality by itself.

    Args:
        directory: A run's directory, which holds `metrics.jsonl`.

    Returns:
        The PNG files written to `plots/`.

    Raises:
        InputError: There is no metrics file, or nothing in it.
    """
    directory = Path(directory).expanduser()
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        raise InputError(f"{directory} has no metrics.jsonl; name the directory of a run")
    rows = read_metrics(metrics)
    if not rows:
        raise InputError(f"{metrics} is empty: the run has not finished a step yet")
    (directory / "plots").mkdir(exist_ok=True)
    path = directory / "plots" / "curves.png"
    drawn = io.BytesIO()
    _curves(rows, directory.name).savefig(drawn, dpi=150)
    write_file(path, drawn.getvalue())
    return [path]


def _curves(rows: list[Row], name: str) -> Figure:
    rates = sorted({key for row in rows for key in row if key.startswith("held_out/tar_")})
    selected = bool(rates) or any("tar" in row for row in rows)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(12 if selected else 8, 3.6), layout="constrained")
        training, held_out, *tar = figure.subplots(1, 3 if selected else 2)
    figure.suptitle(name)
    _line(training, rows, "divergence", "divergence", BLUE)
    _line(training, rows, "cross_entropy", "student cross-entropy", ORANGE)
    _line(training, rows, "loss", "loss: what is minimised", GREY, linewidth=0.8)
    _title(training, "Training batches (per token)")
    _line(held_out, rows, "held_out/kl", "KL(teacher ‖ student)", BLUE, marker="o")
    _line(held_out, rows, "held_out/cross_entropy", "student cross-entropy", ORANGE, marker="o")
    _line(held_out, rows, "held_out/teacher_cross_entropy", "teacher cross-entropy", GREY, linestyle="--")
    _title(held_out, "Held-out (nats per token)")
    for axes in tar:
        _line(axes, rows, "tar", "training batches", GREY)
        for key, color in zip(rates, (BLUE, ORANGE), strict=False):
            label = "held-out " + key.removeprefix("held_out/tar_").replace("_", " ")
            _line(axes, rows, key, label, color, marker="o")
        axes.set_ylim(0, 1.02)
        _title(axes, "Token acceptance rate")
    return figure


def _line(axes: Any, rows: list[Row], key: str, label: str, color: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, label=label, markersize=4, **style)


def _title(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    # Curves that fall leave the upper right free; a floor of zero keeps two runs comparable by eye.
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
