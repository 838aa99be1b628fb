"""The report of one run, or of several: a single file of HTML that loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import write_file
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax._provenance import describe_library
from selecttkd_jax.reporting._compare import Comparison, compare, in_hours, in_words
from selecttkd_jax.reporting._curves import draw_curves, draw_positions
from selecttkd_jax.reporting._html import details, escape, legend, page, section, table
from selecttkd_jax.reporting._record import RunRecord
from selecttkd_jax.reporting._svg import MOST_POINTS, short_number

_GENERATOR = "selecttkd_jax"
_SAMPLES = 6  # shown of a run; as many again on request
_EVENTS = 200
_REJECTED = 0.5  # acceptance below which a token is marked, as in samples.jsonl
# Options that are read first, and sections.
_FIRST = (
    "seed",
    "models.teacher",
    "models.student",
    "data.train",
    "data.sources",
    "data.held_out",
    "data.batch_size",
    "data.max_length",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "training.steps",
    "training.epochs",
)
_FIRST_SECTIONS = ("method.", "objective.", "selection.", "lora.")
_STARTS = ("start", "resume", "extend")


def write_report(runs: Sequence[RunRecord], path: str | Path) -> Path:
    """Writes the report.

    Raises:
        InputError: There is another file under that name, which is no report of ours.
    """
    path = expand_home(path)
    if path.exists() and not _is_ours(path):
        raise InputError(f"{path} exists and is no report; name another file with --output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a directory; name an existing one for {path.name}")
    write_file(path, render(runs))
    return path


def render(runs: Sequence[RunRecord]) -> str:
    """The page."""
    compared = compare(runs)
    names = compared.names
    several = len(runs) > 1
    title = " and ".join(names) if len(names) < 3 else f"{len(names)} runs"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "".join(f'<p class="soft">{escape(_headline(run))}</p>' for run in runs),
        _tiles(runs[0]) if not several else "",
        section("Side by side", table(("", *names), _rows(compared, options=False))) if several else "",
        section("Settings", _settings(runs, compared)),
        section("Curves", _figures(draw_curves(runs, names), names if several else [], _means(runs))),
        section("Acceptance by position", _figures(draw_positions(runs, names))),
        section("Samples", "".join(_samples(run, name, several) for run, name in zip(runs, names, strict=True))),
        section("Events", "".join(_events(run, name, several) for run, name in zip(runs, names, strict=True))),
        section("Environment", _environment(runs, names)),
        f'<p class="soft">Written by {escape(describe_library())}.</p>',
    ]
    return page(title, "".join(parts), _GENERATOR)


def _headline(run: RunRecord) -> str:
    method = run.options.get("method.name", "kd")
    models = [Path(str(run.options[name])).name for name in ("models.teacher", "models.student") if name in run.options]
    under_way = "" if run.steps is None or run.step >= run.steps else ", not at its end"
    return f"{run.name}: {method}, {' -> '.join(models)}, {run.state}{under_way}"


def _tiles(run: RunRecord) -> str:
    if not run.evaluated:
        return ""
    (first, before), (last, after) = run.evaluated[0], run.evaluated[-1]
    tiles = []
    for name, label in (
        ("kl", "held-out KL"),
        ("cross_entropy", "held-out cross-entropy"),
        ("top1_agreement", "top-1 agreement"),
        *((name, f"held-out TAR, {name[4:].replace('_', ' ')}") for name in after if name.startswith("tar_")),
    ):
        if name in after:
            change = f"{after[name]:.3f}"
            if name in before and last > first:
                change = f"{before[name]:.3f} → {change}"
            tiles.append((change, label))
    tiles.append((in_hours(run.seconds), "in steps"))
    if run.tokens_per_second is not None:
        tiles.append((short_number(run.tokens_per_second), "tokens a second (median)"))
    shown = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(label)}</div>' for value, label in tiles)
    when = f"Held-out numbers of step {first} → step {last}." if last > first else f"Held-out numbers of step {last}."
    return f'<div class="tiles">{shown}</div><p class="soft">{when}</p>'


def _rows(compared: Comparison, *, options: bool) -> list[list[str]]:
    return [[label, *cells] for label, cells in compared.rows() if (label in compared.differing) == options]


def _settings(runs: Sequence[RunRecord], compared: Comparison) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    everything = [[name, *(in_words(run.options.get(name)) for run in runs)] for name in names]
    if len(runs) == 1:
        first = [row for row in everything if row[0] in _FIRST or row[0].startswith(_FIRST_SECTIONS)]
        return table((), first) + details(f"all {len(names)} options", table((), everything))
    differing = table(("option", *compared.names), _rows(compared, options=True))
    if not differing:
        differing = "<p>All options are the same.</p>"
    return differing + details(f"all {len(names)} options", table(("option", *compared.names), everything))


def _figures(figures: str, names: Sequence[str] = (), note: str = "") -> str:
    if not figures:
        return ""
    shared = legend([(name, number) for number, name in enumerate(names)])
    return f'{shared}<div class="figures">{figures}</div>{note}'


def _means(runs: Sequence[RunRecord]) -> str:
    """How many steps a point of a long run stands for."""
    size = max((-(-len(run.rows) // MOST_POINTS) for run in runs), default=1)
    return f'<p class="soft">Lines without marks are means of {size} steps.</p>' if size > 1 else ""


def _samples(run: RunRecord, name: str, several: bool) -> str:
    if not run.samples:
        return ""
    newest = run.samples[::-1]
    shown = "".join(map(_sample, newest[:_SAMPLES]))
    earlier = details("earlier ones", "".join(map(_sample, newest[_SAMPLES : 2 * _SAMPLES])))
    heading = f"<h3>{escape(name)}</h3>" if several else ""
    about = '<p class="soft">Tokens that the verifier accepts with less than one half are <mark>marked</mark>.</p>'
    return f"{heading}{about}{shown}{earlier}"


def _sample(sample: dict[str, Any]) -> str:
    tokens, accepted = sample.get("tokens"), sample.get("acceptance")
    if isinstance(tokens, list) and isinstance(accepted, list) and len(tokens) == len(accepted):
        response = "".join(_token(token, value) for token, value in zip(tokens, accepted, strict=True))
    else:
        response = escape(sample.get("marked", sample.get("response", "")))
    place = f"step {sample.get('step', '?')}, by the {sample.get('by', 'model')}"
    return (
        f'<div class="sample"><p class="soft">{escape(place)}</p>'
        f'<pre class="prompt">{escape(sample.get("prompt", ""))}</pre><pre>{response}</pre></div>'
    )


def _token(token: object, acceptance: object) -> str:
    if not isinstance(acceptance, int | float) or acceptance >= _REJECTED or not token:
        return escape(token)
    return f'<mark title="accepted with {acceptance:.2f}">{escape(token)}</mark>'


def _events(run: RunRecord, name: str, several: bool) -> str:
    rows = [_event(event) for event in run.events]
    skipped = [int(row["step"]) for row in run.rows if "skipped" in row]
    if skipped:
        listed = ", ".join(map(str, skipped[:20])) + (" and more" if len(skipped) > 20 else "")
        rows.append(["", "skipped", f"{len(skipped)} steps that were not finite: {listed}"])
    if not rows:
        return ""
    heading = f"<h3>{escape(name)}</h3>" if several else ""
    left = len(rows) - _EVENTS
    more = f'<p class="soft">{left} earlier ones are in events.jsonl.</p>' if left > 0 else ""
    return f"{heading}{more}{table(('time (UTC)', 'event', ''), rows[-_EVENTS:])}"


def _event(event: dict[str, Any]) -> list[str]:
    kind = str(event.get("event", "?"))
    time = str(event.get("time", ""))[:19].replace("T", " ")
    if kind in _STARTS:
        return [
            time,
            kind,
            f"at step {event.get('step', '?')} of {event.get('of', '?')}, on {event.get('devices', '?')}",
        ]
    said = [str(event[name]) for name in ("why", "message") if event.get(name)]
    if "step" in event:
        said.insert(0, f"step {event['step']}")
    return [time, kind, ": ".join(said)]


def _environment(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Of each run's last start."""
    starts = [next((event for event in run.events[::-1] if event.get("event") in _STARTS), {}) for run in runs]
    facts = [_facts(start) for start in starts]
    rows = [
        [name, *(found.get(name, "") for found in facts)]
        for name in dict.fromkeys(key for found in facts for key in found)
    ]
    return table(("", *names) if len(runs) > 1 else (), rows)


def _facts(start: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in start.items():
        if name in ("time", "event", "step", "of") or value in (None, {}):
            continue
        if isinstance(value, dict):
            found |= {str(key) if name == "packages" else f"{name} {key}": str(one) for key, one in value.items()}
        else:
            found[name] = str(value)
    return found


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return f'<meta name="generator" content="{_GENERATOR}">'.encode() in file.read(4096)
