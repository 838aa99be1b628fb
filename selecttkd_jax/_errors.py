"""What is wrong with what the caller handed in. Nothing here needs JAX.

`InputError` marks a mistake in what was asked for. The command line shows it as one line; every other exception is a
defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something handed in by the caller is wrong; the message says what, and what to do."""


def check_at_least(name: str, value: float, low: float) -> None:
    """Raises InputError unless `value >= low`."""
    if not value >= low:
        raise InputError(f"{name} must be at least {low}, got {value}")


def check_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `allowed`; the message names the closest match."""
    allowed = list(allowed)
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{did_you_mean(value, allowed)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `name`, or nothing."""
    matches = get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
