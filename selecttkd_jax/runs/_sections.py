"""What a configuration's dataclasses say of themselves: which options are sections, and of which kinds.

A section is an option whose type is a dataclass, perhaps one that may be left out (`LoraConfig | None`), or one of
several that differ by what their `name` is (`Kd | Sft`). Of `tuple[SourceConfig, ...]` a file has a list of tables.
"""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin

import numpy as np

from selecttkd_jax._errors import InputError

_LARGEST = 2**32 - 1  # of a whole number: seeds need 32 bits, counts are int32 on devices


def section_kinds(annotation: Any) -> tuple[Any, ...]:
    """The dataclasses that an option of this type may be; none for a plain option."""
    return tuple(one for one in alternatives(annotation) if dataclasses.is_dataclass(one))


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type that there is."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def table_kind(annotation: Any) -> Any:
    """The dataclass of which an option of this type is a list; None for another option."""
    lists = [get_args(one) for one in alternatives(annotation) if get_origin(one) is tuple]
    return next((one for one, *_ in lists if dataclasses.is_dataclass(one)), None)


def options_of(kinds: tuple[type[Any], ...]) -> dict[str, list[tuple[type[Any], dataclasses.Field]]]:
    """The options of a section by name, each with the kinds that have it."""
    found: dict[str, list[tuple[type[Any], dataclasses.Field]]] = {}
    for kind in kinds:
        for entry in dataclasses.fields(kind):
            found.setdefault(entry.name, []).append((kind, entry))
    return found


def is_required(entry: dataclasses.Field) -> bool:
    """Whether an option has no default, or needs none only where another one stands (`metadata`: unless)."""
    if "unless" in entry.metadata:
        return True
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raises InputError, naming the option, for a number that a device would hold as another one.

    Devices compute in float32, where 1e-50 is 0, 1e50 is infinite and 0.99999999 is 1: an `eps` of 0 or a decay of 1
    divides by zero. Numbers below float32's smallest normal one are flushed to zero, too.
    """
    for entry in dataclasses.fields(config):
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise InputError(f"{name} is beyond {_LARGEST}, the largest whole number that an option takes")
        elif isinstance(value, float) and (fault := _describe_float32(value)):
            raise InputError(f"{name} = {value} is {fault} in float32, in which a device computes")


def _describe_float32(value: float) -> str:
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if not np.isfinite(single):
        return str(single)
    if value != 0 and abs(single) < np.finfo(np.float32).tiny:
        return "0"
    return "1" if value != 1 and single == 1 else ""
