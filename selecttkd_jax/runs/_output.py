"""The folder of a run: one process at a time, with room for what is to be written."""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax._errors import InputError
from selecttkd_jax._new_files import sweep

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def lock_output(directory: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made; the system opens the lock when this process ends, however.

    Raises:
        InputError: Another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"another process trains in output {directory}; wait for it, stop it, or choose another output"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"output {directory} cannot be written: {os.strerror(error.errno)}") from error
        logger.warning("output %s is not locked, since its storage has no locks: start no second run there", directory)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def clean_output(directory: Path) -> None:
    """Removes or recovers what a killed process has left unfinished in a run's folder."""
    names = ("student", "adapter", "config.toml", "metrics.jsonl", "metrics.csv", "samples.jsonl")
    for name in names:
        sweep(directory / name)
    sweep(directory / "plots" / "curves.png")
    checkpoints = directory / "checkpoints"
    for left in checkpoints.glob("step_*.orbax-checkpoint-tmp*"):
        shutil.rmtree(left, ignore_errors=True)


def check_room(directory: Path, state: Any) -> None:
    """Raises InputError unless the folder of the checkpoints can be written, and has room for one of them.

    Args:
        directory: Where they are to be.
        state: Arrays, or their shapes.
    """
    needed = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state) if _is_plain(leaf))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\0" * 2**16)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {os.strerror(error.errno or 0)}") from error
    if free < needed:
        raise InputError(
            f"{directory} has room for {free / 2**30:.2f} GiB, and a checkpoint takes {needed / 2**30:.2f}; free some, "
            "or choose another output"
        )


def _is_plain(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
