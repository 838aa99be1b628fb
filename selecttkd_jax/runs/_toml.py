"""Configuration files: TOML in, checked key by key, and out again."""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import cattrs
import tomli_w

from selecttkd_jax._errors import InputError, check_one_of, did_you_mean
from selecttkd_jax._new_files import write_file
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.methods import MethodConfig
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._sections import alternatives, is_required, options_of, section_kinds, table_kind


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads a TOML file.

    Args:
        path: The file. It may lack what `overrides` has.
        overrides: Nested dictionaries of options that count instead of the file's; None leaves an option out.

    Raises:
        InputError: The file is missing or not TOML, a key is unknown (the nearest known one is named), or, once the
            overrides are in, an option is missing, of the wrong type or out of range.
    """
    path = expand_home(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory; name the file, such as {path / 'config.toml'}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a configuration file in TOML")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte-order mark
    except RecursionError:
        raise InputError(f"{path} is not valid TOML: its brackets are nested too deeply") from None
    except ValueError as error:  # bad syntax, bytes that are no UTF-8, a whole number of thousands of digits
        raise InputError(f"{path} is not valid TOML: {error}") from error
    _check_names(values, (RunConfig,), str(path), "")
    merged = _merged(values, overrides or {})
    return config_from_dict(merged, str(path) if merged == values else f"{path} with the options given")


def config_from_dict(values: Mapping[str, Any], source: str) -> RunConfig:
    """Builds the configuration from nested dictionaries; `source` names them in errors."""
    _check_names(values, (RunConfig,), source, "")
    if missing := _missing(values, RunConfig, source, ""):
        names = f"{', '.join(missing[:-1])} and {missing[-1]} are" if len(missing) > 1 else f"{missing[0]} is"
        raise InputError(f"{source}: {names} missing")
    _check_values(values, (RunConfig,), source, "")
    try:
        return _converter().structure(values, RunConfig)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries without the options that were left out, which TOML could not hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            return [config_to_dict(one) for one in value]
        return config_to_dict(value) if dataclasses.is_dataclass(value) else value

    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    return {name: plain(value) for name, value in values.items() if value is not None}


def save_config(config: RunConfig, path: Path, header: Sequence[str] = ()) -> None:
    """Writes the resolved configuration as TOML that `load_config` reads back, below lines of comment."""
    # What a comment may not hold is left out of it: a path can hold a line break.
    comments = ["# " + "".join(letter if letter.isprintable() else "?" for letter in line) for line in header]
    text = "".join(f"{line}\n" for line in comments) + ("\n" if comments else "")
    write_file(path, text + tomli_w.dumps(config_to_dict(config)))


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the overrides in their places."""
    merged = dict(values)
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            merged[name] = _merged(merged.get(name, {}), value)
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for simple in (int, float, bool, str):
        converter.register_structure_hook(simple, _exactly)
    converter.register_structure_hook(
        bool | str, lambda value, _: _exactly(value, bool if isinstance(value, bool) else str)
    )
    converter.register_structure_hook(
        MethodConfig,
        lambda value, kind: _structure_section(converter, value, _pick(section_kinds(kind), value, "method")),
    )
    return converter


def _structure_section(converter: cattrs.Converter, value: Mapping[str, Any], kind: Any) -> Any:
    """A section whose own sections begin with what it has for them, such as how a method samples."""
    made = {
        entry.name: entry.default_factory()
        for entry in dataclasses.fields(kind)
        if entry.default_factory is not dataclasses.MISSING
    }
    inner = {name: config_to_dict(default) for name, default in made.items() if dataclasses.is_dataclass(default)}
    return converter.structure(_merged(inner, value), kind)


def _exactly(value: Any, kind: type) -> Any:
    """A TOML value of the type its field has; cattrs alone would turn "3" into 3 and 0.5 into 0."""
    if kind is float and type(value) is int:  # 1 is a fine way to write 1.0
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _check_names(values: Mapping[str, Any], kinds: tuple[type[Any], ...], source: str, prefix: str) -> None:
    """Raises InputError where a key is no option of any of the kinds, or a section is none and the reverse."""
    options = options_of(kinds)
    for name, value in values.items():
        if name not in options:
            raise InputError(f"{source}: unknown option {prefix}{name}{_suggestion(name, options, prefix)}")
        inner = section_kinds(options[name][0][1].type)
        if table := table_kind(options[name][0][1].type):
            if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
                raise InputError(f"{source}: {prefix}{name} is a list of tables; write each as [[{prefix}{name}]]")
            for number, one in enumerate(value):
                _check_names(one, (table,), source, f"{prefix}{name}[{number}].")
            continue
        if inner and not isinstance(value, Mapping):
            raise InputError(f"{source}: {prefix}{name} is a section; write it as [{prefix}{name}]")
        if inner:
            _check_names(value, inner, source, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and not _is_table(options[name][0][1].type):
            raise InputError(f"{source}: {prefix}{name} is an option, not a section")


def _is_table(annotation: Any) -> bool:
    """Whether an option is a table of whatever it is given for."""
    return any(get_origin(one) is dict for one in alternatives(annotation))


def _check_values(values: Mapping[str, Any], kinds: tuple[type[Any], ...], source: str, prefix: str) -> None:
    """Raises InputError where a value has the wrong type, or an option is another kind's than the one picked."""
    picked = _pick(kinds, values, f"{source}: {prefix.rstrip('.')}")
    options = options_of(kinds)
    for name, value in values.items():
        entry = next((entry for kind, entry in options[name] if kind is picked), None)
        if entry is None:
            owners = ", ".join(kind.name for kind, _ in options[name])
            raise InputError(f"{source}: {prefix}{name} is an option of {owners}, not of {picked.name}")
        if inner := section_kinds(entry.type):
            _check_values(value, inner, source, f"{prefix}{name}.")
        elif table := table_kind(entry.type):
            for number, one in enumerate(value):
                _check_values(one, (table,), source, f"{prefix}{name}[{number}].")
        else:
            _check_value(value, entry.type, f"{source}: {prefix}{name}")


def _pick(kinds: tuple[type[Any], ...], values: Mapping[str, Any], where: str) -> Any:
    """Of several kinds of a section the one whose `name` it has, or the first."""
    if len(kinds) == 1:
        return kinds[0]
    by_name = {kind.name: kind for kind in kinds}
    name = values.get("name", kinds[0].name)
    check_one_of(f"{where}.name", str(name), by_name)
    return by_name[str(name)]


def _missing(values: Mapping[str, Any], kind: Any, source: str, prefix: str) -> list[str]:
    """The dotted names of the options without a default that are not there."""
    found: list[str] = []
    for entry in dataclasses.fields(kind):
        inner, table = section_kinds(entry.type), table_kind(entry.type)
        if entry.name not in values and (not is_required(entry) or entry.metadata.get("unless") in values):
            continue
        if inner:
            section = values.get(entry.name, {})
            picked = _pick(inner, section, f"{source}: {prefix}{entry.name}")
            found += _missing(section, picked, source, f"{prefix}{entry.name}.")
        elif table:
            for number, one in enumerate(values[entry.name]):
                found += _missing(one, table, source, f"{prefix}{entry.name}[{number}].")
        elif entry.name not in values:
            found.append(f"{prefix}{entry.name}")
    return found


def _check_value(value: Any, kind: Any, where: str) -> None:
    try:
        takes_text = any(one is str or get_origin(one) is Literal for one in alternatives(kind))
        if isinstance(value, str) and not takes_text:
            # cattrs would take a text for a sequence of letters
            raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {value!r}")
        if _is_table(kind) and not isinstance(value, Mapping):
            raise TypeError(f"expected a table, got {value!r}")
        _converter().structure(value, kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _suggestion(name: str, options: Mapping[str, Any], prefix: str) -> str:
    here = did_you_mean(name, options)
    if here or prefix:
        return here
    for section, [(_, entry), *_] in options.items():
        # A section's option written at top level is the likeliest slip of all.
        if name in options_of(section_kinds(entry.type)):
            return f" (did you mean {section}.{name}?)"
    return ""
