"""Figures from a run's metrics file."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from selecttkd_jax.checks import InputError
from selecttkd_jax.metrics import read_metrics

BLUE, ORANGE, GREY = "#1f5fa8", "#d1600a", "#8a8a8a"


def plot_run(directory: str | Path) -> list[Path]:
    """Draws loss, held-out KL and token acceptance rate over the steps.

    Args:
        directory: A run's directory, which holds `metrics.jsonl`.

    Returns:
        The PNG files written to `plots/`.

    Raises:
        InputError: There is no metrics file, or nothing in it.
    """
    directory = Path(directory)
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        raise InputError(f"{directory} has no metrics.jsonl; name the directory of a run")
    rows = read_metrics(metrics)
    if not rows:
        raise InputError(f"{metrics} is empty: the run has not finished a step yet")
    (directory / "plots").mkdir(exist_ok=True)
    path = directory / "plots" / "curves.png"
    _curves(rows, directory.name).savefig(path, dpi=150)
    return [path]


def _curves(rows: list[dict[str, float]], name: str) -> Figure:
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        loss, kl, tar = figure.subplots(1, 3)
    figure.suptitle(name)
    _line(loss, rows, "divergence", "divergence", GREY)
    _line(loss, rows, "loss", "loss: weighted by acceptance", BLUE)
    _title(loss, "Training batches (per token)")
    _line(kl, rows, "held_out/kl", "KL(teacher ‖ student)", BLUE, marker="o")
    _line(kl, rows, "held_out/cross_entropy", "student cross-entropy", ORANGE, marker="o")
    _line(kl, rows, "held_out/teacher_cross_entropy", "teacher cross-entropy", GREY, linestyle="--")
    _title(kl, "Held-out (nats per token)")
    _line(tar, rows, "tar", "training batches", GREY)
    rates = sorted({key for row in rows for key in row if key.startswith("held_out/tar_")})
    for key, color in zip(rates, (BLUE, ORANGE), strict=False):
        _line(tar, rows, key, "held-out " + key.removeprefix("held_out/tar_").replace("_", " "), color, marker="o")
    tar.set_ylim(0, 1.02)
    _title(tar, "Token acceptance rate")
    return figure


def _line(axes: Any, rows: list[dict[str, float]], key: str, label: str, color: str, **style: Any) -> None:
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
