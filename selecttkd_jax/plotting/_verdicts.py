"""A text with each token in the colour of its verdict."""

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from selecttkd_jax._errors import InputError
from selecttkd_jax.plotting._theme import Theme, draw_themes

# A monospaced letter is 0.602 of its size wide in the font that comes with matplotlib; all in inches.
_SIZE = 11
_LETTER = 0.602 * _SIZE / 72
_LINE = 0.29
_MARGIN = 0.2


def plot_verdicts(
    path: str | Path,
    tokens: Sequence[str],
    acceptance: Sequence[float],
    *,
    title: str = "",
    prompt: str = "",
    columns: int = 84,
    most_lines: int = 14,
) -> list[Path]:
    """Draws a response, its accepted tokens on blue and its rejected ones on orange and underlined.

    Args:
        path: The PNG file; its twin for a dark page is written beside it, `verdicts-dark.png`.
        tokens: The response's text, cut into what each token adds to it.
        acceptance: Of each token, in [0, 1]; below 0.5 it counts as rejected, in the picture.
        title: Above it.
        prompt: What the response answers, between title and response; empty draws none.
        columns: Letters in a line.
        most_lines: Lines of the response, after which it is cut.

    Returns:
        The files written.

    Raises:
        InputError: There are no tokens, or another number of acceptances.
    """
    if not tokens or len(tokens) != len(acceptance):
        raise InputError(f"{len(tokens)} tokens and {len(acceptance)} acceptances; give as many, and at least one")
    pieces = _lay_out(tokens, columns, most_lines)
    rejected = [value < 0.5 for value in acceptance]
    head = [title] * bool(title) + textwrap.wrap(prompt, columns, max_lines=2)
    return draw_themes(Path(path).expanduser(), partial(_draw, pieces, rejected, head, bool(title), columns))


def _lay_out(tokens: Sequence[str], columns: int, most_lines: int) -> list[tuple[int, int, int, str]]:
    """(token, line, column, text) of each piece: a token is cut only by an end of line of its own or a full line."""
    pieces, line, column = [], 0, 0
    for index, token in enumerate(tokens):
        for number, part in enumerate(token.replace("\t", "    ").split("\n")):
            if number:
                # An empty line would only take room.
                line, column = (line + 1, 0) if column else (line, 0)
            shown = "".join(letter if letter.isprintable() else " " for letter in part)
            if column + len(shown) > columns and column:
                line, column, shown = line + 1, 0, shown.lstrip()
            if line >= most_lines:
                return [*pieces, (index, line - 1, columns, " …")] if pieces else pieces
            if shown:
                pieces.append((index, line, column, shown[:columns]))
                column += len(shown[:columns])
    return pieces


def _draw(
    pieces: list[tuple[int, int, int, str]],
    rejected: Sequence[bool],
    head: list[str],
    titled: bool,
    columns: int,
    theme: Theme,
) -> Figure:
    lines = 1 + max((line for _, line, _, _ in pieces), default=0)
    height = (len(head) + lines + 1.6) * _LINE + 2 * _MARGIN
    width = (columns + 2) * _LETTER + 2 * _MARGIN
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def write(x: float, y: float, text: str, **style: object) -> None:
        options = {"family": "DejaVu Sans Mono", "fontsize": _SIZE, "va": "center", "parse_math": False, **style}
        axes.text(x, y, text, **options)

    def mark(x: float, y: float, letters: float, out: bool) -> None:
        size = (letters * _LETTER - 0.02, 0.88 * _LINE)
        axes.add_patch(
            Rectangle((x + 0.01, y - size[1] / 2), *size, color=theme.rejected if out else theme.accepted, lw=0)
        )
        if out:
            axes.plot([x + 0.01, x + size[0]], [y + size[1] / 2] * 2, color=theme.orange, lw=2, solid_capstyle="butt")

    y = _MARGIN + _LINE / 2
    for number, text in enumerate(head):
        bold = titled and number == 0
        write(_MARGIN, y, text, weight="bold" if bold else "normal", color=theme.text if bold else theme.grey)
        y += _LINE
    y += 0.15 * _LINE
    for index, line, column, text in pieces:
        x = _MARGIN + column * _LETTER
        if text != " …":
            mark(x, y + line * _LINE, len(text), rejected[index])
        write(x, y + line * _LINE, text, color=theme.text)
    y += (lines + 0.35) * _LINE
    x = _MARGIN
    share = sum(not out for out in rejected) / len(rejected)
    for out, label in ((False, " accepted "), (True, " rejected ")):
        mark(x, y, len(label), out)
        write(x, y, label, color=theme.text)
        x += (len(label) + 2) * _LETTER
    write(x, y, f"{share:.0%} of {len(rejected)} tokens accepted", color=theme.grey)
    return figure
