"""All pictures of a run's directory."""

from functools import partial
from pathlib import Path

from selecttkd_jax._errors import InputError
from selecttkd_jax.metrics import read_metrics, read_samples
from selecttkd_jax.plotting._curves import draw_curves, plot_positions, rates_by_position
from selecttkd_jax.plotting._theme import draw_themes
from selecttkd_jax.plotting._verdicts import plot_verdicts


def plot_run(directory: str | Path) -> list[Path]:
    """Draws a run: its curves, and where models wrote while it trained, what became of their tokens.

    Args:
        directory: A run's directory, which holds `metrics.jsonl`.

    Returns:
        The PNG files written to `plots/`, each followed by its twin for a dark page: `curves`; and where a model wrote,
        `positions`, the acceptance by place in the response, and `verdicts`, the newest sample's tokens.

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
    plots = directory / "plots"
    written = draw_themes(plots / "curves.png", partial(draw_curves, rows, directory.name))
    if curves := rates_by_position(rows):
        written += plot_positions(plots / "positions.png", curves, title=directory.name)
    samples = directory / "samples.jsonl"
    if samples.is_file() and (written_by_models := read_samples(samples)):
        sample = written_by_models[-1]
        title = f"The {sample['by']}'s text at step {sample['step']}"
        written += plot_verdicts(plots / "verdicts.png", sample["tokens"], sample["acceptance"], title=title)
    return written
