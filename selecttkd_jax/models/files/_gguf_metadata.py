"""What a GGUF file says about itself, read within the file's bounds and by type; every complaint names file and key."""

import mmap
import struct
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._extras import install_command
from selecttkd_jax._outside_files import reading, shorten, show_name

# Bytes of the scalar types, by their number in the file; 8 is a string and 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


class Metadata:
    """The metadata of a GGUF file, by key.

    Attributes:
        values: All of them.
        source: The file, for messages.
    """

    def __init__(self, values: dict[str, Any], source: str):
        self.values = values
        self.source = source

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, `default` where it has none; a list of equal numbers, one a layer, is that number.

        Raises:
            InputError: It is of another type.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if kind is not list and isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.source}: {key} must be {kind.__name__}, got {shorten(value)}")
        return value

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that every model's file has."""
        value = self.get(key, kind)
        if value is None:
            raise InputError(f"{self.source} has no {key}")
        return value

    def get_strings(self, key: str) -> list[str]:
        """A list of texts; empty where there is none."""
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{self.source}: {key} must be a list of texts")
        return values

    def get_token_id(self, key: str) -> int | None:
        """The id of a token that the file has; None where the key is missing."""
        index, size = self.get(key, int), len(self.get_strings("tokenizer.ggml.tokens"))
        if index is not None and not 0 <= index < size:
            raise InputError(f"{self.source}: {key} is {index}, and there are {size} tokens")
        return index


def open_gguf(path: Path) -> tuple[Metadata, dict[str, Any]]:
    """A GGUF file's metadata, and its tensors by name.

    Raises:
        InputError: There is no such file, it is not one, or it is torn.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(f"reading GGUF files needs the package gguf; {install_command('gguf')}") from None
    if not path.is_file():
        raise InputError(f"GGUF file {path} does not exist")
    with reading(path, problem="is truncated or not a GGUF file"):
        _check_lengths(path)
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        return Metadata(values, str(path)), {tensor.name: tensor for tensor in reader.tensors}


def _check_lengths(path: Path) -> None:
    """Raises where an array is longer than the file: the reader would count to its end, one entry at a time."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            version = struct.unpack_from("<I", content, 4)[0]
            # The version of a file of the other byte order is in the upper half.
            order = "<" if version & 0xFFFF else ">"
            place = 24
            for _ in range(struct.unpack_from(f"{order}Q", content, 16)[0]):
                key, place = _skip_string(content, order, place)
                kind = struct.unpack_from(f"{order}I", content, place)[0]
                place = _skip_value(content, order, place + 4, kind, show_name(key.decode()))


def _skip_value(content: mmap.mmap, order: str, place: int, kind: int, key: str) -> int:
    """Where the value at `place` ends."""
    if kind == _STRING:
        return _skip_string(content, order, place)[1]
    if kind in _SIZES:
        return place + _SIZES[kind]
    if kind != _ARRAY:
        raise ValueError(f"{key} is of the unknown type {kind}")
    inner, count = struct.unpack_from(f"{order}IQ", content, place)
    place += 12
    if inner in _SIZES:
        place += count * _SIZES[inner]
    elif inner == _STRING:
        for _ in range(count):
            place = _skip_string(content, order, place)[1]
    else:
        raise ValueError(f"{key} is a list of lists or of an unknown type")
    if place > len(content):
        raise ValueError(f"{key} has {count} entries, more than the file holds")
    return place


def _skip_string(content: mmap.mmap, order: str, place: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(f"{order}Q", content, place)
    end = place + 8 + length
    if end > len(content):
        raise ValueError(f"a text of {length} bytes is longer than the file")
    return content[place + 8 : min(end, place + 8 + 200)], end
