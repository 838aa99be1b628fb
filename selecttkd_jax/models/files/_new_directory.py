"""Directories that are replaced as one, and only where nothing but a model would be lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selecttkd_jax._errors import InputError
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
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unfinished", dir=target.parent))
    try:
        # mkdtemp gives a directory that only its owner may read.
        unfinished.chmod(0o777 & ~_read_umask())
        yield unfinished
        if target.is_dir():
            replaced = unfinished.with_suffix(".replaced")
            os.rename(target, replaced)
            os.rename(unfinished, target)
            shutil.rmtree(replaced)
        else:
            os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_replaceable(directory: str | Path) -> None:
    """Raises InputError if writing a model to `directory` would remove something that is not a model's file."""
    path = expand_home(directory)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} exists and is not a directory")
    foreign = foreign_entries(path) if path.is_dir() else []
    if foreign:
        raise InputError(f"{path} holds {foreign[0]}, which is not a model's file; choose another directory")


def _read_umask() -> int:
    # The only way to read it is to set it.
    current = os.umask(0)
    os.umask(current)
    return current
