"""The names of a command's options, to find the nearest one to a slip."""

import dataclasses
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import tyro


def option_names(kind: Any) -> list[str]:
    """The dotted names of all options of a command, with underscores."""
    found = []
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        if not (is_typeddict(kind) or name in {entry.name for entry in dataclasses.fields(kind)}):
            continue
        annotated = get_origin(annotation) is Annotated
        inner, *settings = get_args(annotation) if annotated else (annotation,)
        if dataclasses.is_dataclass(inner) or is_typeddict(inner):
            is_named = not any(one is tyro.conf.OmitArgPrefixes or getattr(one, "name", None) == "" for one in settings)
            found += [f"{name}.{below}" if is_named else below for below in option_names(inner)]
        else:
            found.append(name)
    return found
