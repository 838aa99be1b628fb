"""Files that others wrote, read within bounds: whatever is wrong with one is an InputError of one line that names it.

JSON may nest 10,000 brackets, hold an integer of 5,000 digits, or half a surrogate pair that no file can be written
with, and the parsers of others raise exceptions of their own kinds. None of that is a defect of ours. Nothing here
needs JAX.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError

MOST_BYTES = 2**28
MOST_DEPTH = 100  # a chat template's or a tool's JSON schema nests a dozen levels
MOST_DIGITS = 309  # the most that a float can hold

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def reading(source: str | Path, problem: str = "cannot be read") -> Iterator[None]:
    """The boundary around what reads an outside file: inside it, every exception is the file's and names it.

    Args:
        source: The file, or what else is read.
        problem: What the message says of it.

    Raises:
        InputError: Instead of any other exception but those that stop the program.

    Example:
        >>> with reading("model.gguf"):
        ...     {}["general.architecture"]
        Traceback (most recent call last):
        selecttkd_jax._errors.InputError: model.gguf cannot be read (KeyError: 'general.architecture')
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{source} does not exist") from None
    except MemoryError:
        raise InputError(f"{source} asks for more memory than there is") from None
    except RecursionError:
        raise InputError(f"{source} is nested too deeply") from None
    except BaseException as error:
        # A panic of a library written in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = first_line(error)[:300].encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{source} {problem} ({type(error).__name__}: {reason})") from error


def expand_home(path: str | Path) -> Path:
    """The path, with a leading `~` or `~user` written out.

    Raises:
        InputError: There is no such user, or the path holds a NUL.
    """
    if "\0" in str(path):
        raise InputError(f"{shorten(str(path))} holds a NUL, which no path can")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home directory") from None


def cache_directory() -> Path:
    """Where this library keeps what it can make again: $XDG_CACHE_HOME/selecttkd_jax, else ~/.cache/selecttkd_jax."""
    return expand_home(f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/selecttkd_jax")


def resolve_inside(directory: Path, name: str, source: str | Path) -> Path:
    """The file `name` of a model directory.

    Args:
        directory: The model's.
        name: As `source` gives it, relative to the directory.
        source: The file that names it, for messages.

    Raises:
        InputError: It is outside the directory, or a link on its way leads there.
    """
    if "\0" in name or not 0 < len(name) < 1000:
        raise InputError(f"{source} names a file {show_name(name)}, which no file can be called")
    with reading(source):
        root, target = directory.resolve(), (directory / name).resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise InputError(
            f"{source}: {show_name(name)} leads out of {directory}, to {target}; only files inside a model directory "
            "are read, so put the file itself there"
        )
    return directory / name


def check_links(directory: Path, patterns: Iterable[str]) -> None:
    """Raises InputError where an entry of a directory that matches one of `patterns` is a link that leads out of it."""
    with reading(directory):
        links = sorted(entry.name for entry in directory.iterdir() if entry.is_symlink())
    for name in links:
        if any(fnmatch(name, pattern) for pattern in patterns):
            resolve_inside(directory, name, directory)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: There is no such file, or it holds anything but a JSON object within the bounds of `parse_json`.
    """
    with reading(path):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path} has {size / 2**20:.0f} MiB, more than the {MOST_BYTES // 2**20} that are read")
        content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def parse_json(text: str | bytes, source: str) -> Any:
    """The value that a JSON text stands for; a byte order mark in front of it is passed over.

    Args:
        text: UTF-8 where it is bytes.
        source: Where it came from, for messages: a file, or a file and its line.

    Raises:
        InputError: It is not JSON; it nests deeper than `MOST_DEPTH`; or a number in it is not finite as a float, or a
            text holds half a surrogate pair (both named by their keys).

    Example:
        >>> parse_json('{"rope": {"factor": 1e400}}', "config.json")
        Traceback (most recent call last):
        selecttkd_jax._errors.InputError: config.json: rope.factor is a number that no float can hold
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            decoded.removeprefix("\ufeff"), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_Unusable
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise InputError(f"{source} is nested more than {MOST_DEPTH} levels deep") from None
    except MemoryError:
        raise InputError(f"{source} asks for more memory than there is") from None
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}") from None
    _check_values(value, source)
    return value


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shorten(value: Any, most: int = 120) -> str:
    """`repr(value)` for a message: one line, printable, cut in its middle.

    Example:
        >>> shorten("a" * 1000, most=20)
        "'aaaaaaa...aaaaaaaa'"
    """
    shown = ascii(value) if _holds_lone_surrogate(repr(value)) else repr(value)
    half = (most - 3) // 2
    return shown if len(shown) <= most else f"{shown[:half]}...{shown[-(most - 3 - half) :]}"


def show_name(name: str) -> str:
    """A name as it is, or as `shorten` shows it where a line would not hold it."""
    return name if name.isprintable() and len(name) <= 120 and not _holds_lone_surrogate(name) else shorten(name)


class _Unusable:
    """Stands for a number that no float can hold until its key is known."""

    def __init__(self, digits: str):
        self.digits = digits


def _parse_int(digits: str) -> int | _Unusable:
    return int(digits) if len(digits) <= MOST_DIGITS else _Unusable(digits)


def _parse_float(digits: str) -> float | _Unusable:
    value = float(digits)
    return value if math.isfinite(value) else _Unusable(digits)


def _check_values(content: Any, source: str) -> None:
    """Raises InputError for what `json` accepts and nothing else can use, with its key."""
    # Not by recursion: the content may nest as deep as Python allows.
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(content, ())]
    while waiting:
        value, keys = waiting.pop()
        if len(keys) > MOST_DEPTH:
            raise InputError(f"{source} is nested more than {MOST_DEPTH} levels deep")
        if isinstance(value, dict):
            for key, inner in value.items():
                if _holds_lone_surrogate(key):
                    raise InputError(f"{source}: the key {shorten(key)} holds half a surrogate pair, which is no text")
                waiting.append((inner, (*keys, key)))
        elif isinstance(value, list):
            waiting.extend((inner, (*keys, index)) for index, inner in enumerate(value))
        elif isinstance(value, _Unusable):
            raise InputError(f"{_place(source, keys)} is a number that no float can hold")
        elif isinstance(value, str) and _holds_lone_surrogate(value):
            raise InputError(f"{_place(source, keys)} holds half a surrogate pair, which is no text")


def _holds_lone_surrogate(text: str) -> bool:
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def _place(source: str, keys: tuple[Any, ...]) -> str:
    name = ".".join(map(str, keys))
    if not name:
        return source
    return f"{source}: {show_name(name)}"
