"""Whether two runs are the same one: what is on disk and what is asked for, here and in the other processes.

A path says where something is, not what: the same name may hold other weights tomorrow, or on another host. So what a
run is made with goes by what is in it.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax import models
from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Rows
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._extension import with_length_of
from selecttkd_jax.runs._output import LOCK
from selecttkd_jax.runs._saved import with_paths_of
from selecttkd_jax.runs._toml import config_to_dict, load_config
from selecttkd_jax.sources import EngineConfig
from selecttkd_jax.training import Frozen, Pair, check_leaves, combine_checksums, latest_step, list_not_finite

# A run may be moved, to a smaller machine, too ("run" is "./run"), and be logged and saved at other steps.
WHERE_AND_HOW = {
    "output",
    "mesh",
    "logging",
    "data.cache",
    "data.workers",
    "models.remat",
    "training.micro_batches",
    "training.head_memory_mib",
    "training.slots",
    "training.log_every",
    "training.save_every",
    "training.keep_checkpoints",
    "training.compilation_cache",
    "training.max_skipped",
    "training.stop_above",
    *(f"engine.{entry.name}" for entry in dataclasses.fields(EngineConfig) if entry.name != "every"),
}


def describe_config(config: RunConfig) -> dict[str, Any]:
    """The options that a step depends on, as plain data (`WHERE_AND_HOW` has the others)."""

    def keep(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: keep(value, f"{prefix}{name}.") if isinstance(value, dict) else value
            for name, value in values.items()
            if f"{prefix}{name}" not in WHERE_AND_HOW
        }

    return keep(config_to_dict(config), "")


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, those aside that no step depends on (`WHERE_AND_HOW`)."""
    found = []
    for name in dict.fromkeys([*a, *b]):
        if f"{prefix}{name}" in WHERE_AND_HOW:
            continue
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{name}.")
        elif _are_tables(left, right):
            for number, (there, here) in enumerate(zip(left or (), right or (), strict=True)):
                found += differences(there, here, f"{prefix}{name}[{number}].")
        elif _as_list(left) != _as_list(right):
            found.append(f"{prefix}{name} ({left} there, {right} here)")
    return found


def describe_ingredients(
    pair: Pair, tokenizer: Any, stop_ids: Sequence[int], rows: Mapping[str, Rows]
) -> dict[str, Any]:
    """What a run is made with but the weights: rows by their names, tokenizer and both configs, as plain JSON data."""
    known = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, list(stop_ids)]
    decoders = {"student's config": pair.student, "teacher's config": pair.teacher}
    return {
        **{name: some.fingerprint for name, some in rows.items()},
        "tokenizer": checksum(known),
        **{name: None if decoder is None else _as_json(decoder) for name, decoder in decoders.items()},
    }


def describe_frozen(frozen: Frozen) -> dict[str, int]:
    """A checksum of each model's weights that a run reads and does not change.

    Raises:
        InputError: They are not finite.
    """
    parts = {"teacher's weights": frozen.teacher, "frozen weights of the student": frozen.base}
    return {name: _fingerprint(name, params) for name, params in parts.items() if params is not None}


def check_same_ingredients(there: dict[str, Any], here: dict[str, Any], directory: Path) -> None:
    """Raises InputError, naming what changed, unless a checkpoint was made with what this run has."""
    changed = []
    for name in dict.fromkeys([*there, *here]):
        before, now = there.get(name), here.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            changed += [f"the {name}: {fields}" for fields in differences(before, now)]
        elif before != now:
            changed.append(f"the {name}, which {_say_change(name, before, now)}")
    if changed:
        raise InputError(
            f"{directory} was made with other things than are here now: {'; '.join(changed)}; put them back to "
            "resume, or choose another output"
        )


def agreed_facts(config: RunConfig, ingredients: dict[str, Any], step: int | None = None) -> dict[str, int | None]:
    """What the processes of a run have to have in common: numbers (None: there is none) by their names in a sentence.

    Args:
        config: Each section counts, and each option outside of them.
        ingredients: From `describe_ingredients`: what this process has read.
        step: Of the newest checkpoint.
    """
    values = {entry.name: repr(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    facts: dict[str, int | None]
    facts = {f"{name} in the configuration": zlib.crc32(value.encode()) for name, value in values.items()}
    facts |= {f"the {name}": None if value is None else checksum(value) for name, value in ingredients.items()}
    for role, model in (("teacher", config.models.teacher), ("student", config.models.student)):
        facts[f"the {role}'s weights"] = None if model is None else models.fingerprint_files(model)
    return facts | {f"the checkpoint (step {step} here)": step}


def check_output(config: RunConfig, directory: Path) -> None:
    """Raises InputError when `directory` holds anything but this very run, or a start that saved nothing yet."""
    if "://" in config.output:
        raise InputError(f"output {config.output} is a URL; name a directory, of storage that is mounted on every host")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"output {directory} is a file; name a directory")
    if not directory.is_dir() or all(_is_of_a_start(entry.name) for entry in directory.iterdir()):
        return
    exports = [directory / name for name in ("student", "adapter")]
    if not (directory / "config.toml").is_file():
        raise InputError(
            f"output {directory} holds files but no run of ours (no config.toml); choose another directory"
        )
    for export in exports:
        models.check_replaceable(export)
    if latest_step(directory / "checkpoints") is None and not any(export.exists() for export in exports):
        return
    recorded = load_config(directory / "config.toml")
    there = with_length_of(recorded, config)
    if there is not recorded and latest_step(directory / "checkpoints") is None:
        raise InputError(
            f"output {directory} holds a run of {recorded.training.steps} steps without a checkpoint, from which alone "
            "it could go on; put one back, or choose another output"
        )
    if config.training.epochs is not None:
        # Its steps were counted, and these are not yet.
        steps = dataclasses.replace(there.training, steps=config.training.steps)
        there = dataclasses.replace(there, training=steps)
    there = with_paths_of(there, config)
    if {there.data.packing, config.data.packing} <= {"auto", "rows", "off"}:  # a step learns the same with each
        there = dataclasses.replace(there, data=dataclasses.replace(there.data, packing=config.data.packing))
    changed = differences(config_to_dict(there.resolved()), config_to_dict(config.resolved()))
    if changed:
        raise InputError(
            f"output {directory} belongs to a different run: {'; '.join(changed)}; choose another output, or restore "
            "these options to resume"
        )


def _is_of_a_start(name: str) -> bool:
    """Whether a process that was killed before it wrote its `config.toml` leaves such a file."""
    return name == LOCK or (name.startswith(".config.toml.") and name.endswith(".unfinished"))


def _are_tables(left: Any, right: Any) -> bool:
    """Whether both are lists of as many tables."""
    if not (isinstance(left, list) and isinstance(right, list) and len(left) == len(right)):
        return False
    return all(isinstance(one, dict) for one in (*left, *right))


def _as_list(value: Any) -> Any:
    """Tuples as lists: TOML has only one kind of sequence."""
    return list(value) if isinstance(value, tuple) else value


def _as_json(config: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def checksum(value: Any) -> int:
    """Of plain JSON data."""
    # One below the number that stands for None where processes compare.
    return zlib.crc32(json.dumps(value, sort_keys=True).encode()) % (2**32 - 1)


def _fingerprint(name: str, params: Params) -> int:
    checks = check_leaves(params)
    if broken := list_not_finite(checks):
        raise InputError(f"the {name} hold NaN or infinity in {broken}; fetch or make that model again")
    return combine_checksums(checks)


def _say_change(name: str, before: Any, now: Any) -> str:
    several = name.endswith(("rows", "weights")) or name.startswith("frozen weights")
    verb, other = ("were", "others") if several else ("was", "another")
    return f"{verb} not there then" if before is None else f"{verb} there then" if now is None else f"{verb} {other}"
