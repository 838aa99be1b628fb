"""A run's own `config.toml`: every option, what wrote it, and paths that hold wherever the next command is started.

Local paths are written absolute. They also hold relative to the run: a project folder that is moved as a whole keeps
its runs, and so does a run that is moved alone.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax._provenance import describe_library
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._toml import load_config, save_config
from selecttkd_jax.training import latest_step

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.toml"
# Section and option, and where an option holds several, which; the names that lead to a value.
Place = tuple[Any, ...]
# What does not exist here is a name on the hub, and stays one.
_INPUTS: tuple[Place, ...] = (
    ("models", "teacher"),
    ("models", "student"),
    ("data", "train"),
    ("data", "held_out"),
    ("method", "corpus"),
)
_FOLDERS: tuple[Place, ...] = (("data", "cache"), ("training", "compilation_cache"))


def save_run(config: RunConfig, directory: Path) -> None:
    """Writes `config.toml` into a run's directory."""
    header = [
        f"Written by {describe_library()}. Every option of the run stands here with its value.",
        "Paths are absolute; in a folder that was moved, those relative to this file hold.",
        f"selecttkd train {directory.name} resumes, wherever it lies.",
    ]
    if absent := _left_out(config):
        header.append(f"Left out, and so without a value: {', '.join(absent)}.")
    save_config(with_absolute_paths(config), directory / CONFIG_FILE, header)


def is_run(directory: str | Path) -> bool:
    """Whether a run was started in a directory; a `config.toml` and models alone may lie in any folder of a project."""
    path = expand_home(directory)
    begun = ("metrics.jsonl", "events.jsonl", "checkpoints")
    return (path / CONFIG_FILE).is_file() and any((path / name).exists() for name in begun)


def open_run(directory: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run where it lies now.

    Raises:
        InputError: There is no run, or its `config.toml` is not one.
    """
    directory = expand_home(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; name a run's, the output of selecttkd train")
    if not is_run(directory):
        raise InputError(
            f"{directory} is no run: it lacks {CONFIG_FILE} or metrics.jsonl; name the output of selecttkd train"
        )
    said = overrides or {}
    config = load_config(directory / CONFIG_FILE, said)
    length = said.get("training", {})
    if config.training.epochs is not None and "steps" in length and "epochs" not in length:
        raise InputError(
            f"the run in {directory} counts its steps by epochs, of which it has {config.training.epochs:g}; give "
            "--training.epochs instead of --training.steps"
        )
    there = os.path.abspath(expand_home(load_config(directory / CONFIG_FILE).output))
    here = os.path.abspath(directory)
    for place in _inputs(config) if there != here else ():
        value = _get(config, place)
        if place[1] in said.get(place[0], {}) or value is None or not os.path.isabs(value) or os.path.exists(value):
            continue
        moved = os.path.abspath(os.path.join(here, os.path.relpath(value, there)))
        if os.path.exists(moved):
            option = ".".join(map(str, place))
            logger.info("%s is no longer %s: taking %s, where it was from the run", option, value, moved)
            config = _set(config, place, moved)
    return config if "output" in said else dataclasses.replace(config, output=here)


def recorded_steps(directory: Path) -> int | None:
    """The steps of the whole run that has checkpoints in a directory; None where there is none."""
    if latest_step(directory / "checkpoints") is None or not is_run(directory):
        return None
    return load_config(directory / CONFIG_FILE).training.steps


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with its local paths written out from the root."""
    for place in _inputs(config):
        value = _get(config, place)
        if value is not None and expand_home(value).exists():
            config = _set(config, place, os.path.abspath(expand_home(value)))
    for place in _FOLDERS:
        value = _get(config, place)
        if value is not None and value != "off":
            config = _set(config, place, os.path.abspath(expand_home(value)))
    return dataclasses.replace(config, output=os.path.abspath(expand_home(config.output)))


def with_paths_of(there: RunConfig, here: RunConfig) -> RunConfig:
    """`there` with the spelling of `here` in each path that is the same: from the root, or from the run's directory."""
    outputs = [os.path.abspath(expand_home(config.output)) for config in (there, here)]
    for place in _inputs(there):
        before, now = _get(there, place), _get(here, place)
        if before is None or now is None or not os.path.isabs(before):
            continue
        paths = [before, os.path.abspath(expand_home(now))]
        near = [os.path.relpath(path, output) for path, output in zip(paths, outputs, strict=True)]
        if paths[0] == paths[1] or near[0] == near[1]:
            there = _set(there, place, now)
    return there


def _left_out(config: Any, prefix: str = "") -> list[str]:
    """The dotted names of the options that TOML cannot hold, having no value."""
    found = []
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value is None:
            found.append(f"{prefix}{entry.name}")
        elif dataclasses.is_dataclass(value):
            found += _left_out(value, f"{prefix}{entry.name}.")
    return found


def _inputs(config: RunConfig) -> list[Place]:
    """Where the configuration names what the run reads."""
    return [*_INPUTS, *(("data", "sources", index, "path") for index in range(len(config.data.sources or ())))]


def _get(config: RunConfig, place: Place) -> str | None:
    """The value at a place, None where the configuration has no such place."""
    value: Any = config
    for name in place:
        if isinstance(name, int):
            value = value[name] if value is not None and name < len(value) else None
        else:
            value = getattr(value, name, None)
    return value


def _set(holder: Any, place: Place, value: str) -> Any:
    """`holder`, a configuration or a part of one, with another value at a place that it has."""
    if not place:
        return value
    name, *rest = place
    if isinstance(name, int):
        return tuple(_set(each, tuple(rest), value) if index == name else each for index, each in enumerate(holder))
    return dataclasses.replace(holder, **{name: _set(getattr(holder, name), tuple(rest), value)})
