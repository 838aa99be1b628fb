"""Pictures of a run, each for a light page and for a dark one."""

from selecttkd_jax.plotting._curves import plot_positions
from selecttkd_jax.plotting._run import plot_run
from selecttkd_jax.plotting._theme import THEMES, Theme
from selecttkd_jax.plotting._verdicts import plot_verdicts

__all__ = ["THEMES", "Theme", "plot_positions", "plot_run", "plot_verdicts"]
