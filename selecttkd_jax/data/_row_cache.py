"""Rows on disk: rendered and tokenised once, and memory-mapped by every later start.

A file holds all that was made of a run's data, in Arrow's format, and is named by what it was made from. Warnings that
were told while it was made stand in it, too, and are told again.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np

from selecttkd_jax.data._rows import Rows
from selecttkd_jax.data._tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Bytes of kept rows; then the files that were not used for longest go.
_KEPT = 20 * 2**30
# Seconds after which nobody writes a file any more.
_STALE = 24 * 3600
_OURS = re.compile(r"[0-9a-f]{40}\.(arrow|\d+\.part)$")
_SUMS = ("response_tokens", "prompts_alone", "fingerprint", "largest_id")


@dataclass(frozen=True)
class Ragged(Sequence[np.ndarray]):
    """Arrays of several lengths that follow on each other in one.

    Attributes:
        values: All of them, one behind the other.
        offsets: Where each begins, and where the last one ends.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class _Texts(Sequence[str]):
    """Texts of an Arrow array, made when they are asked for."""

    def __init__(self, array: Any):
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return self._array[index].to_pylist()
        return self._array[index].as_py()


def load_rows(folder: Path | None, key: Mapping[str, Any], make: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
    """The rows that `make` makes, or that it has made before from the same `key`.

    Processes that ask at the same time wait for the first one. What `make` raises is not kept.

    Args:
        folder: Where they are kept; None keeps nothing.
        key: All that the rows depend on, as JSON can hold it.
        make: Reads and tokenises: rows by name.
    """
    if folder is None:
        return make()
    import filelock

    text = json.dumps({**key, "code": _code()}, sort_keys=True, ensure_ascii=True)
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.arrow"
    lock = filelock.FileLock(f"{file}.lock")
    try:
        if (found := _read(file)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        _wait_for(lock)
    except OSError as error:
        logger.warning("rows are not kept (data.cache): %s", error)
        return make()
    try:
        return _read(file) or _make(file, make)
    finally:
        lock.release()


def _wait_for(lock: Any) -> None:
    import filelock

    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("another process tokenises the same data; waiting for it")
        lock.acquire()


def _make(file: Path, make: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
    """Makes the rows and keeps them in the file, if it can be written."""
    with _listen() as told:
        made = make()
    try:
        _write(file, made, told)
        _drop_old(file.parent, keep=file)
        logger.info("rows are kept for the next start: %s", file)
        # As the other processes have them: in pages that all of a machine's processes share, and not in lists.
        return _map(file)[0]
    except (OSError, ValueError) as error:
        logger.warning("rows are not kept: %s", error)
        return made


def fingerprint_tokenizer(tokenizer: Tokenizer) -> str:
    """A checksum of all that a tokenizer does with a text, its template included."""
    said = {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.backend_tokenizer.to_str(),
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {
            name: str(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(("_file", "_path"))
        },
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> list[str]:
    """What makes rows: this library as it is, and those that it leaves the work to."""
    package = Path(__file__).parent.parent
    ours = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py"))))
    return [ours.hexdigest(), *(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2"))]


@contextlib.contextmanager
def _listen() -> Iterator[list[tuple[int, str]]]:
    """The warnings that this library logs meanwhile."""
    told: list[tuple[int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append((record.levelno, record.getMessage()))

    listener, ours = Listener(level=logging.WARNING), logging.getLogger("selecttkd_jax")
    ours.addHandler(listener)
    try:
        yield told
    finally:
        ours.removeHandler(listener)


def _write(file: Path, sets: Mapping[str, Rows], told: Sequence[tuple[int, str]]) -> None:
    """One record batch a set of rows; in place only when it is whole."""
    import pyarrow as pa

    columns = {"tokens": pa.large_list(pa.int32()), "response": pa.large_list(pa.uint8())}
    schema = pa.schema(columns | {"prompt_length": pa.int32(), "checksum": pa.uint32(), "source": pa.large_string()})
    facts = {name: _facts(rows) for name, rows in sets.items()}
    schema = schema.with_metadata({"facts": json.dumps({"sets": facts, "told": told})})
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in sets.values():
                offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.lengths)])
                tokens = np.concatenate(rows.tokens).astype(np.int32, copy=False)
                response = np.concatenate(rows.response).view(np.uint8)
                arrays = [
                    pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
                    pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(response)),
                    pa.array(rows.prompt_lengths, pa.int32()),
                    pa.array(rows.checksums),
                    pa.array(list(rows.sources), pa.large_string()),
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _facts(rows: Rows) -> dict[str, int]:
    options = {name: getattr(rows, name) for name in ("max_length", "read", "cut", "dropped")}
    return options | {name: int(getattr(rows, name)) for name in _SUMS}


def _read(file: Path) -> dict[str, Rows] | None:
    """What is kept in a file, and what was told of it told again; None where there is none to be read."""
    if not file.exists():
        return None
    try:
        sets, told = _map(file)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("kept rows cannot be read and are made anew: %s: %s", file, error)
        return None
    logger.info("rows from %s", file)
    with contextlib.suppress(OSError):  # somebody else's
        os.utime(file)
    for level, message in told:
        logger.log(level, "%s", message)
    return sets


def _map(file: Path) -> tuple[dict[str, Rows], list[tuple[int, str]]]:
    """Rows in the memory of the system's page cache alone, and the warnings that were told of them."""
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    kept = json.loads(reader.schema.metadata[b"facts"])
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    sets = {name: _to_rows(batch, facts) for (name, facts), batch in zip(kept["sets"].items(), batches, strict=True)}
    return sets, kept["told"]


def _to_rows(batch: Any, facts: dict[str, Any]) -> Rows:
    tokens, response, prompt_lengths, checksums, source = batch.columns
    offsets = tokens.offsets.to_numpy()
    rows = Rows(
        tokens=Ragged(tokens.values.to_numpy(), offsets),
        response=Ragged(response.values.to_numpy().view(bool), offsets),
        sources=_Texts(source),
        **{name: value for name, value in facts.items() if name not in _SUMS},
    )
    # What was counted once is not counted again: that would read all of the file.
    rows.__dict__.update({name: facts[name] for name in _SUMS})
    known = {"lengths": np.diff(offsets), "checksums": checksums.to_numpy()}
    rows.__dict__.update(known, prompt_lengths=prompt_lengths.to_pylist())
    return rows


def _drop_old(folder: Path, keep: Path) -> None:
    """Removes the files of ours that were not used for longest, and what killed processes have left; nobody else's."""
    found = {entry: entry.stat() for entry in folder.iterdir() if _OURS.match(entry.name)}
    for entry, stat in found.items():
        if entry.suffix == ".part" and time.time() - stat.st_mtime > _STALE:
            entry.unlink(missing_ok=True)
    total = 0
    kept = [entry for entry in found if entry.suffix == ".arrow"]
    for entry in sorted(kept, key=lambda entry: found[entry].st_mtime, reverse=True):
        total += found[entry].st_size
        if total > _KEPT and entry != keep:
            entry.unlink(missing_ok=True)
            Path(f"{entry}.lock").unlink(missing_ok=True)
