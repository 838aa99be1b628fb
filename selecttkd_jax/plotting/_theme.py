"""Colours for a light and for a dark page, and how a picture is written in both."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from selecttkd_jax._new_files import write_file


@dataclass(frozen=True)
class Theme:
    """Colours of a picture. Blue and orange are told apart by all common kinds of colour blindness.

    Attributes:
        suffix: What the file's name ends in, before `.png`.
        page: Behind the picture.
        text: Letters and axes.
        blue: The first curve, and what is accepted.
        orange: The second curve, and what is rejected.
        grey: What is there to compare with.
        accepted: Behind an accepted token.
        rejected: Behind a rejected token.
    """

    suffix: str
    page: str
    text: str
    blue: str
    orange: str
    grey: str
    accepted: str
    rejected: str

    def style(self) -> dict[Any, Any]:
        """Matplotlib's settings."""
        return {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.page),
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor"),
                self.text,
            ),
            "grid.color": self.grey,
        }


THEMES = (
    Theme("", "#ffffff", "#1f2328", "#1f5fa8", "#d1600a", "#8a8a8a", "#d3e5f8", "#ffd9b8"),
    Theme("-dark", "#0d1117", "#e6edf3", "#6cb0f5", "#f2a65e", "#8b949e", "#17406b", "#7a3d0c"),
)
"""The light one and the dark one."""


def draw_themes(path: Path, draw: Callable[[Theme], Figure]) -> list[Path]:
    """Writes `path` and, beside it, the same picture for a dark page: `curves.png` and `curves-dark.png`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for theme in THEMES:
        with matplotlib.rc_context(theme.style()):
            target = path.with_name(f"{path.stem}{theme.suffix}{path.suffix}")
            drawn = io.BytesIO()
            draw(theme).savefig(drawn, dpi=150)
            write_file(target, drawn.getvalue())
        written.append(target)
    return written
