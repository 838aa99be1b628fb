"""The options of a command: their names, to find the nearest one to a slip, and their types."""

import dataclasses
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import tyro


def option_types(kind: Any) -> dict[str, Any]:
    """The type of each option of a command, by its dotted name with underscores."""
    found = {}
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        if not (is_typeddict(kind) or name in {entry.name for entry in dataclasses.fields(kind)}):
            continue
        annotated = get_origin(annotation) is Annotated
        inner, *settings = get_args(annotation) if annotated else (annotation,)
        if dataclasses.is_dataclass(inner) or is_typeddict(inner):
            is_named = not any(one is tyro.conf.OmitArgPrefixes or getattr(one, "name", None) == "" for one in settings)
            prefix = f"{name}." if is_named else ""
            found |= {f"{prefix}{below}": below_type for below, below_type in option_types(inner).items()}
        else:
            found[name] = inner
    return found
