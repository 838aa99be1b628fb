"""Several runs side by side: what they reached, and in which options they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selecttkd_jax.reporting._record import RunRecord, name_apart

# Where a run lies is no choice of it.
_NOT_COMPARED = ("output",)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: What each is called.
        summaries: What each reached: `state`, `steps`, `seconds`, `tokens_per_second` (the median step's), the last
            held-out numbers as `held_out`, and the `step` after which they were taken.
        differing: The options that are not the same in all runs, by their dotted names, with a value a run; None where
            one was left out.
    """

    names: list[str]
    summaries: list[dict[str, Any]]
    differing: dict[str, list[Any]]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        runs = [{"run": name, **summary} for name, summary in zip(self.names, self.summaries, strict=True)]
        return {"runs": runs, "differing": self.differing}

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: a label and a cell for each run."""
        first = [
            ("steps", [summary["state"] for summary in self.summaries]),
            ("time", [in_hours(summary["seconds"]) for summary in self.summaries]),
            ("tokens/s", [_number(summary["tokens_per_second"], ",.0f") for summary in self.summaries]),
            ("evaluated at", [_number(summary["evaluated_at"], "d") for summary in self.summaries]),
        ]
        held_out = [summary["held_out"] for summary in self.summaries]
        for name in dict.fromkeys(name for numbers in held_out for name in numbers):
            kind = ",.0f" if name == "tokens" else ".4f"
            first.append((f"held-out {name}", [_number(numbers.get(name), kind) for numbers in held_out]))
        options = [(name, [in_words(value) for value in values]) for name, values in self.differing.items()]
        return first + options


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Puts runs side by side."""
    runs = list(runs)
    names = sorted({name for run in runs for name in run.options}, key=_by_section)
    differing = {}
    for name in names:
        values = [run.options.get(name) for run in runs]
        if name not in _NOT_COMPARED and any(value != values[0] for value in values):
            differing[name] = values
    return Comparison(name_apart(runs), [_summary(run) for run in runs], differing)


def in_hours(seconds: float) -> str:
    """`42 s`, `3:07 min`, `2:03:07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"


def in_words(value: Any) -> str:
    """An option's value for a table."""
    if value is None:
        return "left out"
    if not isinstance(value, list):
        return str(value)
    if value and all(isinstance(one, dict) for one in value):
        return ", ".join(map(_source_in_words, value))
    return " ".join(map(str, value))


def _source_in_words(source: dict[str, Any]) -> str:
    """`rows.jsonl (weight 3)`: a table of `[[data.sources]]`."""
    others = [f"{name} {in_words(value)}" for name, value in source.items() if name != "path"]
    return f"{source.get('path', '')} ({', '.join(others)})" if others else str(source.get("path", ""))


def _summary(run: RunRecord) -> dict[str, Any]:
    step, numbers = run.evaluated[-1] if run.evaluated else (None, {})
    return {
        "directory": str(run.directory),
        "state": run.state,
        "step": run.step,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "evaluated_at": step,
        "held_out": numbers,
    }


def _number(value: float | None, kind: str) -> str:
    return "" if value is None else format(value, kind)


def _by_section(name: str) -> tuple[bool, str]:
    """Options outside sections first."""
    return ("." in name, name)
