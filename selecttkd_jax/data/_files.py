"""Files of rows: JSONL, CSV and Parquet, gzipped or not, and data sets of `datasets`.

Each row comes with the place where it stands and is read when it is asked for, so that one that is broken does not hide
the next. Whatever is wrong with a file itself is an InputError that names it.
"""

import csv
import functools
import gzip
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home, first_line, parse_json, reading
from selecttkd_jax.data._tokenizer import looks_like_path

# Where a row stands, and what reads it or raises InputError.
Row = tuple[str, Callable[[], Any]]

_SUFFIXES = {".json", ".jsonl", ".ndjson", ".txt", ".csv", ".tsv", ".parquet", ".gz"}
# By one of these a directory is known that `datasets` wrote.
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")
# How files begin that are not read, and what they are.
_UNREAD = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


def read_rows(path: str | Path, split: str) -> Iterator[Row]:
    """The rows of a file, of a directory written by `datasets`, or of a data set on the hub, in their order.

    Raises:
        InputError: There is none, or it cannot be read; names it.
    """
    file = expand_home(path)
    with reading(f"data file {str(file)[:200]!r}"):
        is_file, is_directory = file.is_file(), file.is_dir()
    if is_file:
        return _read_file(file)
    if is_directory:
        return _read_saved_dataset(file, split)
    if not is_hub_name(path):
        raise InputError(f"data file {str(path)!r} does not exist")
    return _read_hub_dataset(str(path), split)


def is_hub_name(path: str | Path) -> bool:
    """Whether `read_rows` asks the hub for a data set: nothing is there, and the name is no lost file's."""
    file = expand_home(path)
    return not (file.exists() or looks_like_path(path) or file.suffix in _SUFFIXES)


def fingerprint_rows(path: str | Path, split: str) -> tuple[str, int] | None:
    """A checksum of what `read_rows` would read, and how many bytes that is; None where it cannot be told.

    Whatever is wrong with the data is for `read_rows` to say.
    """
    file = expand_home(path)
    try:
        if file.exists():
            files = [file] if file.is_file() else _list_saved(file, split)
            if not files:
                return None
            checksum = hashlib.sha256(split.encode())
            for entry in files:
                checksum.update(str(entry.relative_to(file)).encode())
                with entry.open("rb") as stream:
                    checksum.update(hashlib.file_digest(stream, "sha256").digest())
            return checksum.hexdigest(), sum(entry.stat().st_size for entry in files)
        if not is_hub_name(path):
            return None
        loaded = _load_hub_dataset(str(path), split)
        return str(loaded._fingerprint), loaded.dataset_size or 2**40
    except (OSError, InputError, AttributeError):
        return None


def _list_saved(directory: Path, split: str) -> list[Path]:
    """The files of a directory that `datasets` wrote and that hold a split; none of another directory."""
    if not any((directory / name).is_file() for name in _SAVED):
        return []
    inside = directory / split if (directory / split).is_dir() else directory
    return sorted(
        entry
        for entry in {*directory.iterdir(), *inside.iterdir()}
        if entry.name in _SAVED or (entry.suffix == ".arrow" and entry.name.startswith("data"))
    )


def _read_file(file: Path) -> Iterator[Row]:
    with reading(file), file.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        if head.startswith(b"PAR1"):
            yield from _read_parquet(file)
            return
        zipped = head.startswith(b"\x1f\x8b")
        stream = gzip.open(raw, "rb") if zipped else raw
        if zipped:
            head = stream.read(6)
            stream.seek(0)
        for begin, kind in _UNREAD.items():
            if head.startswith(begin):
                raise InputError(f"{file} is {kind}; give JSONL in UTF-8, CSV or Parquet, gzipped or not")
        suffixes = {suffix.lower() for suffix in file.suffixes[-2:]}
        if suffixes & {".csv", ".tsv"}:
            yield from _read_table(file, cast(IO[bytes], stream), "\t" if ".tsv" in suffixes else ",")
        else:
            for number, line in enumerate(stream, start=1):
                if line.removeprefix(b"\xef\xbb\xbf").strip():
                    yield f"{file} line {number}", functools.partial(_parse_line, line, file, number)


def _parse_line(line: bytes, file: Path, number: int) -> Any:
    source = f"{file} line {number}"
    # A line break at the end would be counted into a column.
    text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
    try:
        return parse_json(text, source)
    except InputError as error:
        if "is not valid JSON" not in str(error):
            raise
        hint = "every line must be one whole JSON object"
        if number == 1 and text.startswith(b"["):
            hint = "the file looks like one JSON array: write one object a line (JSONL) instead"
        raise InputError(f"{error}; {hint}") from None


def _read_table(file: Path, stream: IO[bytes], delimiter: str) -> Iterator[Row]:
    """The rows of a CSV file whose first line names the columns; an empty cell is none."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            last = 1
            for row in (table := csv.DictReader(text, delimiter=delimiter, strict=True)):
                source, last = f"{file} line {last + 1}", table.line_num
                yield source, functools.partial(_check_cells, row, source)
    finally:
        csv.field_size_limit(limit)


def _check_cells(row: dict[Any, Any], source: str) -> dict[str, str]:
    if None in row:
        raise InputError(f"{source} has more cells than the first line names columns")
    return {name: cell for name, cell in row.items() if cell}


def _read_parquet(file: Path) -> Iterator[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
        yield from _number_rows(rows, str(file))


def _read_saved_dataset(directory: Path, split: str) -> Iterator[Row]:
    if not any((directory / name).is_file() for name in _SAVED):
        files = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
        hint = f"give the file itself, such as {str(files[0])!r}" if files else "write it with datasets' save_to_disk"
        raise InputError(f"directory {str(directory)!r} was not written by datasets; {hint}")
    import datasets

    with reading(f"the data set in {str(directory)!r}"):
        loaded = datasets.load_from_disk(str(directory))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise InputError(
                f"data set {str(directory)!r} has no split {split!r}; it has {', '.join(map(str, loaded))}"
            )
        return _number_rows(loaded[split], f"{directory} {split}")
    return _number_rows(loaded, str(directory))


def _read_hub_dataset(name: str, split: str) -> Iterator[Row]:
    return _number_rows(_load_hub_dataset(name, split), f"{name} {split}")


def _load_hub_dataset(name: str, split: str) -> Any:
    import datasets

    repository, _, subset = name.partition(":")
    try:
        return datasets.load_dataset(repository, subset or None, split=split)
    except Exception as error:
        raise InputError(
            f"{name!r} is neither a file nor a data set that could be loaded from the hub: {first_line(error)}"
        ) from error


def _number_rows(rows: Iterable[Any], name: str) -> Iterator[Row]:
    with reading(name):
        for number, row in enumerate(rows, start=1):
            yield f"{name} row {number}", functools.partial(_without_none, row)


def _without_none(value: Any) -> Any:
    """A row as its writer meant it: a table fills every key that any of its rows has with None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
