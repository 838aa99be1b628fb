"""Files and directories that are there whole or not at all, whenever the process or the machine stops.

Each is made beside its place, in `.NAME.XXXX.unfinished`, brought to the disk, and put in place by one rename. A
directory that is there already changes places with the new one in one call, where the system has such a call. Nothing
here needs JAX.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED, _REPLACED = ".unfinished", ".replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# What systems and storage answer that have no such call.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file, or leaves the one that is there as it is.

    Raises:
        OSError: It cannot be written, which names it.
    """
    data = content.encode() if isinstance(content, str) else content
    sweep(path)
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    unfinished = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            _hold(file.fileno())
            # mkstemp gives a file that only its owner may read.
            os.fchmod(file.fileno(), 0o666 & ~_read_umask())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A sibling that takes the place of `target` when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=target.parent))
    number = os.open(unfinished, os.O_RDONLY)
    try:
        _hold(number)
        # mkdtemp gives a directory that only its owner may read.
        unfinished.chmod(0o777 & ~_read_umask())
        yield unfinished
        for folder, _, files in os.walk(unfinished):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if target.is_dir():
            _exchange(unfinished, target)
        else:
            os.rename(unfinished, target)
        _sync(target.parent)
    finally:
        os.close(number)
        shutil.rmtree(unfinished, ignore_errors=True)


def sweep(target: Path) -> None:
    """Removes what processes that were killed have left beside a file or directory, and puts back what they moved.

    Whoever still writes holds a lock on what is unfinished, which ends with the process; that is left alone, and so is
    everything on storage without locks.
    """
    for left in target.parent.glob(f".{_escape(target.name)}.*{_UNFINISHED}"):
        if not _is_held(left):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    for left in target.parent.glob(f".{_escape(target.name)}.*{_REPLACED}"):
        with contextlib.suppress(OSError):  # another process did so first
            if target.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:
                os.rename(left, target)


def _exchange(unfinished: Path, target: Path) -> None:
    """Puts a directory in the place of another one; the old one is where the new one was, or is removed."""
    if _change_places(unfinished, target):
        return
    # A kill between the two renames is made good by the next `sweep`.
    replaced = unfinished.with_suffix(_REPLACED)
    os.rename(target, replaced)
    os.rename(unfinished, target)
    shutil.rmtree(replaced)


def _change_places(one: Path, other: Path) -> bool:
    """Linux's renameat2(RENAME_EXCHANGE); False where system or storage has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _hold(number: int) -> None:
    with contextlib.suppress(OSError):  # storage without locks
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    """Whether a process holds it, as far as the storage can tell."""
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(number)


def _sync(path: Path) -> None:
    """Brings a file or the names in a directory to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories of some network storage
            raise
    finally:
        os.close(number)


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _read_umask() -> int:
    # The only way to read it is to set it.
    current = os.umask(0)
    os.umask(current)
    return current
