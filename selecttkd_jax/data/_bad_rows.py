"""Rows that cannot be used: all of them are found before one is complained about."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from selecttkd_jax._errors import InputError

logger = logging.getLogger(__name__)

_SHOWN = 10


class BadRows:
    """What is wrong with rows, each in a sentence that names the row.

    Args:
        name: The rows' data set or file, for messages.
        skip: Whether to leave them out with a warning instead of refusing all.
    """

    def __init__(self, name: str, skip: bool):
        self._name = name
        self._skip = skip
        self._errors: list[InputError] = []

    def __len__(self) -> int:
        return len(self._errors)

    def extend(self, others: "BadRows") -> None:
        """Takes over what is wrong with later rows."""
        self._errors += others._errors

    @contextmanager
    def row(self) -> Iterator[None]:
        """Around what is done with one row: its InputError is kept for later."""
        try:
            yield
        except InputError as error:
            self._errors.append(error)

    def finish(self, read: int) -> None:
        """Says what was found.

        Args:
            read: How many rows there were in all.

        Raises:
            InputError: There are bad rows, and they are not to be skipped or nothing else is left.
        """
        count = len(self._errors)
        if not count:
            return
        if count == 1 and not (self._skip and read > 1):
            raise self._errors[0]
        listed = "; ".join(map(str, self._errors[:_SHOWN]))
        more = f"; and {count - _SHOWN:,} more" if count > _SHOWN else ""
        if not self._skip or count == read:
            cure = "" if self._skip else "; mend them, or leave them out with data.skip_bad_rows = true"
            raise InputError(f"{count:,} of {read:,} rows of {self._name} cannot be used: {listed}{more}{cure}")
        logger.warning("%s: %s of %s rows are skipped: %s%s", self._name, f"{count:,}", f"{read:,}", listed, more)
