"""What both sides of the comparison are told: paths and settings, as options of one command line."""

import argparse
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

DIVERGENCES = ("forward_kl", "reverse_kl", "skew_kl", "skew_reverse_kl")
VERIFIERS = ("accept_all", "greedy_top_k", "spec_k", "spec_k_expected")
NORMALIZERS = ("sequence", "token")


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field that is an option of the command line, too."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What is minimised and how."""

    divergence: str = option("reverse_kl", "of student and teacher", DIVERGENCES)
    alpha: float = option(0.1, "share of the first distribution in the mixture of a skewed divergence")
    verifier: str = option("greedy_top_k", "spec_k draws, spec_k_expected weighs by its probability", VERIFIERS)
    k: int = option(5, "teacher tokens that greedy_top_k accepts, candidates that spec_k draws")
    floor: float = option(0.01, "weight of a rejected token")
    normalizer: str = option("sequence", "mean of sequences' means, or of all tokens", NORMALIZERS)
    learning_rate: float = option(5e-5, "peak learning rate")
    warmup_fraction: float = option(0.1, "share of the steps in which the rate rises; a cosine to zero follows")
    weight_decay: float = option(0.0, "decoupled decay of the matrices")
    clip_norm: float = option(1.0, "largest global gradient norm")
    seed: int = option(0, "of the draws of spec_k")

    def words(self) -> list[str]:
        """The settings as options of the command line."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True)
class Job:
    """One run: a teacher, a student, their batches, and where the result goes."""

    teacher: Path
    student: Path
    batches: Path
    result: Path
    settings: Settings


def read_command_line(description: str) -> Job:
    """Parses `TEACHER STUDENT BATCHES.npz RESULT.json` and the settings."""
    parser = argparse.ArgumentParser(description=description)
    paths = ("teacher", "student", "batches", "result")
    for name in paths:
        parser.add_argument(name, type=Path)
    for one in fields(Settings):
        parser.add_argument(
            f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default, **one.metadata
        )
    given = vars(parser.parse_args())
    named = {name: given.pop(name) for name in paths}
    return Job(**named, settings=Settings(**given))
