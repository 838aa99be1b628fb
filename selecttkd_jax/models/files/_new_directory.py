"""Model directories that are replaced as one, and only where nothing but a model would be lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import new_directory
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.models.files._companions import foreign_entries


@contextmanager
def open_new_directory(directory: str | Path) -> Iterator[Path]:
    """A temporary sibling that becomes `directory` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: As `check_replaceable`.
    """
    target = expand_home(directory).absolute()
    check_replaceable(target)
    with new_directory(target) as unfinished:
        yield unfinished


def check_replaceable(directory: str | Path) -> None:
    """Raises InputError if writing a model to `directory` would remove something that is not a model's file."""
    path = expand_home(directory)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} exists and is not a directory")
    foreign = foreign_entries(path) if path.is_dir() else []
    if foreign:
        raise InputError(f"{path} holds {foreign[0]}, which is not a model's file; choose another directory")
