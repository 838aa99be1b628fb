"""`--section.field value`: every option of a run's configuration, for tyro, as dictionaries of what was said.

A dictionary that need not have all its keys keeps apart what was said and what was not, and checks nothing: the file
supplies the rest, and the two are checked together (`runs.load_config`).
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Union, get_origin

import tyro

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli._arguments import Table
from selecttkd_jax.cli._field_docs import field_docs
from selecttkd_jax.runs import RunConfig


def load(path: Path, overrides: dict[str, Any], command: str) -> RunConfig:
    """The configuration of a file with what was said on the command line."""
    said = _without_empty(overrides)
    try:
        return runs.load_config(path, said)
    except InputError as error:
        raise InputError(f"{error} (see selecttkd {command} --help)") from error


def load_run(directory: Path, overrides: dict[str, Any], command: str) -> RunConfig:
    """The configuration of a run, where it lies now, with what was said on the command line."""
    said = _without_empty(overrides)
    try:
        return runs.open_run(directory, said)
    except InputError as error:
        raise InputError(f"{error} (see selecttkd {command} --help)") from error


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """What was said: a section that nothing was said of is an empty dictionary, at any depth."""
    pruned = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in pruned.items() if value != {}}


def as_dictionary(name: str, kinds: tuple[type[Any], ...], about: str) -> Any:
    """The type of dictionaries of a section's options; of a section of several kinds, of the options of all."""
    fields = {}
    for option, owners in runs.options_of(kinds).items():
        inner = runs.section_kinds(owners[0][1].type)
        if runs.table_kind(owners[0][1].type):
            continue  # a list of tables is for the file
        if inner:
            text = field_docs(owners[0][0]).get(option) or inner[0].__doc__ or ""
            fields[option] = as_dictionary(option, inner, text)
        else:
            fields[option] = Annotated[_type_of(owners), _argument(option, owners, kinds)]
    # Its fields are known when the configuration's are: a type checker cannot follow.
    made: Any = TypedDict(name, fields, total=False)  # pyright: ignore[reportArgumentType]
    made.__doc__ = about
    return made


Owners = list[tuple[type[Any], dataclasses.Field]]


def _type_of(owners: Owners) -> Any:
    """What an option may be; a literal of several kinds' names is any of them."""
    types = dict.fromkeys(entry.type for _, entry in owners)
    return Union[tuple(Table if get_origin(one) is dict else one for one in types)]  # noqa: UP007


def _argument(option: str, owners: Owners, kinds: tuple[type[Any], ...]) -> Any:
    """Help and default."""
    texts: dict[str, list[str]] = {}
    for kind, _ in owners:
        texts.setdefault(field_docs(kind).get(option, ""), []).append(getattr(kind, "name", ""))
    if len(kinds) == 1:
        text = " ".join(texts)
    elif option == "name":
        text = " ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    else:
        text = " ".join(f"Of {', '.join(names)}: {text}" for text, names in texts.items())
    return tyro.conf.arg(help=text, help_behavior_hint=_default(owners[0][1]))


def _default(entry: dataclasses.Field) -> str:
    if runs.is_required(entry):
        return "(required)"
    if entry.default is None:
        return ""  # the text says what is then
    default = entry.default
    if entry.default_factory is not dataclasses.MISSING:
        default = entry.default_factory()
    if default == {}:
        return ""
    return f"(default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


if TYPE_CHECKING:
    Overrides = dict[str, Any]
else:
    Overrides = Annotated[as_dictionary("RunConfig", (RunConfig,), ""), tyro.conf.arg(name="")]
