"""A run's configuration: the rooms' own configs, composed; read from TOML, checked, written back."""

import dataclasses
import functools
import tomllib
import types
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
import tomli_w

from selecttkd_jax.checks import InputError, check_one_of, did_you_mean
from selecttkd_jax.data import DataConfig, Rows
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.models import LoraConfig
from selecttkd_jax.sharding import MeshConfig
from selecttkd_jax.training import LoopConfig, OptimizerConfig

DTYPES = ("float32", "bfloat16", "float16")
TEACHER_DTYPES = (*DTYPES, "int8")


@dataclass(frozen=True)
class ModelsConfig:
    """Teacher and student, each a Hugging Face directory or hub name."""

    teacher: str = ""
    """The frozen teacher."""
    student: str = ""
    """Where the student starts: a smaller model of the same tokenizer, or a pruned teacher."""
    teacher_dtype: str = "float32"
    """In which the teacher's weights are kept. bfloat16 halves its memory on an accelerator; int8 halves it again: the
    layers' kernels are stored in int8 with a scale for each column and the rest in compute_dtype, and the log says how
    far (KL on the held-out rows) that teacher is from the unquantised one."""
    student_dtype: str = "float32"
    """In which the student's frozen weights are kept under [lora]. Trained weights are always float32."""
    compute_dtype: str = "float32"
    """In which both models compute; the student's master weights, and all statistics, stay float32."""
    remat: bool = False
    """Recompute the student's layers in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for name in ("teacher", "student"):
            if not getattr(self, name):
                raise InputError(f"models.{name} is missing: name a model directory or a hub model")
        check_one_of("models.teacher_dtype", self.teacher_dtype, TEACHER_DTYPES)
        check_one_of("models.student_dtype", self.student_dtype, DTYPES)
        check_one_of("models.compute_dtype", self.compute_dtype, DTYPES)


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go besides metrics.jsonl and metrics.csv. TensorBoard files are written when it is installed."""

    wandb_project: str | None = None
    """Weights & Biases project. Left out: none."""


@dataclass(frozen=True)
class RunConfig:
    """A distillation run."""

    models: ModelsConfig
    data: DataConfig
    output: str
    """The run's directory. If it holds this very run, the run resumes."""
    seed: int = 0
    """Of the data order and of every random draw."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: LoopConfig = field(default_factory=LoopConfig)
    lora: LoraConfig | None = None
    """Adapters to train instead of the student's weights. Left out: all weights are trained."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not self.output:
            raise InputError("output is missing: name a directory for the run")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in [0, 2**32), got {self.seed}")
        if self.lora is None and self.models.student_dtype != "float32":
            raise InputError(
                f"models.student_dtype = {self.models.student_dtype} is for frozen weights; without a [lora] section "
                "all weights are trained, in float32"
            )
        if self.data.batch_size % self.training.micro_batches:
            raise InputError(
                f"training.micro_batches must divide data.batch_size, {self.data.batch_size}; "
                f"got {self.training.micro_batches}"
            )


def load_config(path: str | Path) -> RunConfig:
    """Reads a TOML file.

    Raises:
        InputError: The file is missing or not TOML, a key is unknown (the nearest known one is named), or a value has
            the wrong type or is out of range.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory; name the file, such as {path / 'config.toml'}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a configuration file in TOML")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    return config_from_dict(values, str(path))


def config_from_dict(values: dict[str, Any], source: str) -> RunConfig:
    """Builds the configuration from nested dictionaries; `source` names them in errors."""
    _check_keys(values, RunConfig, source, "")
    for name in ("models", "data", "output"):
        if name not in values:
            raise InputError(f"{source}: {name} is missing")
    try:
        return _converter().structure(values, RunConfig)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries without the options that were left out, which TOML could not hold."""
    return {
        entry.name: config_to_dict(value) if dataclasses.is_dataclass(value) else value
        for entry in dataclasses.fields(config)
        if (value := getattr(config, entry.name)) is not None
    }


def save_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration as TOML that `load_config` reads back."""
    path.write_text(tomli_w.dumps(config_to_dict(config)), encoding="utf-8")


# A run may be moved, to a smaller machine, too ("run" is "./run"), and be looked at and saved at other steps.
WHERE_AND_HOW = {
    *("output", "mesh", "logging", "models.remat", "training.micro_batches", "training.head_memory_mib"),
    *("training.log_every", "training.save_every", "training.keep_checkpoints"),
}


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, those aside that no step depends on (`WHERE_AND_HOW`)."""
    found = []
    for name in dict.fromkeys([*a, *b]):
        if f"{prefix}{name}" in WHERE_AND_HOW:
            continue
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{name}.")
        elif _as_list(left) != _as_list(right):
            found.append(f"{prefix}{name} ({left} there, {right} here)")
    return found


def agreed_facts(config: RunConfig, rows: Rows, step: int | None) -> dict[str, int | None]:
    """What the processes of a run have to have in common: numbers (None: there is none) by their names in a sentence.

    Args:
        config: Each section counts, and each option outside of them.
        rows: Those that are trained on.
        step: Of the newest checkpoint.
    """
    values = {entry.name: repr(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    facts: dict[str, int | None]
    facts = {f"{name} in the configuration": zlib.crc32(value.encode()) for name, value in values.items()}
    return facts | {
        f"the training rows ({len(rows)} here)": rows.fingerprint,
        f"the checkpoint (step {step} here)": step,
    }


def _as_list(value: Any) -> Any:
    """Tuples as lists: TOML has only one kind of sequence."""
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for simple in (int, float, bool, str):
        converter.register_structure_hook(simple, _exactly)
    return converter


def _exactly(value: Any, kind: type) -> Any:
    """A TOML value of the type its field has; cattrs alone would turn "3" into 3 and 0.5 into 0."""
    if kind is float and type(value) is int:  # 1 is a fine way to write 1.0
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _check_keys(values: dict[str, Any], config: Any, source: str, prefix: str) -> None:
    fields = {entry.name: entry.type for entry in dataclasses.fields(config)}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{source}: unknown option {prefix}{name}{_suggestion(name, config, prefix)}")
        section = _section(fields[name])
        if section is not None and not isinstance(value, dict):
            raise InputError(f"{source}: {prefix}{name} is a section; write it as [{prefix}{name}]")
        if section is not None:
            _check_keys(value, section, source, f"{prefix}{name}.")
        elif isinstance(value, dict):
            raise InputError(f"{source}: {prefix}{name} is an option, not a section")
        else:
            _check_value(value, fields[name], f"{source}: {prefix}{name}")


def _section(kind: Any) -> Any:
    """The dataclass of an option that is a section, perhaps one that may be left out; None for a plain option."""
    return next((one for one in (kind, *_alternatives(kind)) if dataclasses.is_dataclass(one)), None)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return kind.__args__ if isinstance(kind, types.UnionType) else ()


def _check_value(value: Any, kind: Any, where: str) -> None:
    try:
        if isinstance(value, str) and kind is not str and str not in _alternatives(kind):
            # cattrs would take a text for a sequence of letters
            raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {value!r}")
        _converter().structure(value, kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _suggestion(name: str, config: Any, prefix: str) -> str:
    here = did_you_mean(name, [entry.name for entry in dataclasses.fields(config)])
    if here or prefix:
        return here
    for entry in dataclasses.fields(config):
        # A section's option written at top level is the likeliest slip of all.
        section = _section(entry.type)
        if section is not None and name in {inner.name for inner in dataclasses.fields(section)}:
            return f" (did you mean {entry.name}.{name}?)"
    return ""
