"""Curves of a run's metrics: over its steps, and over the places of a response."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selecttkd_jax.metrics import Row
from selecttkd_jax.plotting._theme import Theme, draw_themes


def draw_curves(rows: list[Row], name: str, theme: Theme) -> Figure:
    """Held-out KL and cross-entropy, divergence of the training batches, and token acceptance rates, over the steps.

    The loss is drawn thin: where tokens are selected it rises with the share of them that count, and says nothing of
    quality by itself.
    """
    rates = sorted({key for row in rows for key in row if key.startswith("held_out/tar_")})
    selected = bool(rates) or any("tar" in row for row in rows)
    figure = Figure(figsize=(12 if selected else 8, 3.6), layout="constrained")
    held_out, training, *tar = figure.subplots(1, 3 if selected else 2)
    figure.suptitle(name)
    _line(held_out, rows, "held_out/kl", "KL(teacher ‖ student)", theme.blue, marker="o")
    _line(held_out, rows, "held_out/cross_entropy", "student cross-entropy", theme.orange, marker="o")
    _line(held_out, rows, "held_out/teacher_cross_entropy", "teacher cross-entropy", theme.grey, linestyle="--")
    _finish(held_out, "Held-out (nats per token)")
    _line(training, rows, "divergence", "divergence", theme.blue)
    _line(training, rows, "cross_entropy", "student cross-entropy", theme.orange)
    _line(training, rows, "loss", "loss: what is minimised", theme.grey, linewidth=0.8)
    _finish(training, "Training batches (per token)")
    for axes in tar:
        _line(axes, rows, "tar", "training batches", theme.grey)
        for key, color in zip(rates, (theme.blue, theme.orange), strict=False):
            label = "held-out " + key.removeprefix("held_out/tar_").replace("_", " ")
            _line(axes, rows, key, label, color, marker="o")
        axes.set_ylim(0, 1.02)
        _finish(axes, "Token acceptance rate")
    return figure


def rates_by_position(rows: list[Row]) -> dict[str, dict[int, float]]:
    """Acceptance by place in the response, of each kind of text at its first and at its newest look, by their names."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            kind, mark, place = key.partition("/tar_from_")
            if mark:
                found.setdefault(kind, {}).setdefault(int(row["step"]), {})[int(place)] = value
    return {
        f"{kind.replace('_', ' ')}, step {step}": looks[step]
        for kind, looks in found.items()
        for step in sorted({min(looks), max(looks)})
    }


def plot_positions(path: str | Path, curves: Mapping[str, Mapping[int, float]], *, title: str = "") -> list[Path]:
    """Draws token acceptance rates over the place in the response.

    Args:
        path: The PNG file; its twin for a dark page is written beside it, `positions-dark.png`.
        curves: By name, the acceptance of the tokens from a place on up to the next such place.
        title: Above it.

    Returns:
        The files written.
    """

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        figure.suptitle(title)
        axes = figure.subplots()
        colors = (theme.grey, theme.blue, theme.orange, theme.text)
        for number, (name, rates) in enumerate(curves.items()):
            places = sorted(rates)
            style = {"color": colors[number % 4], "marker": "osD^"[number % 4], "markersize": 4}
            axes.plot(places, [rates[place] for place in places], label=name, **style)
        axes.set_ylim(0, 1.02)
        _finish(axes, "Token acceptance rate", "place in the response, from this token on")
        return figure

    return draw_themes(Path(path).expanduser(), draw)


def _line(axes: Any, rows: list[Row], key: str, label: str, color: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, label=label, markersize=4, **style)


def _finish(axes: Any, title: str, x_label: str = "step") -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.25)
    # Curves that fall leave the upper right free; a floor of zero keeps two runs comparable by eye.
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
