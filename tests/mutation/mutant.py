"""A small way to break the core: file, what stands there, what to put instead, what it would mean."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change to one file of the package. `old` must occur exactly once there."""

    path: str
    old: str
    new: str
    meaning: str
