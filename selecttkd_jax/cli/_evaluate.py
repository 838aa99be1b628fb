"""`selecttkd evaluate`."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from selecttkd_jax import runs
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.cli._arguments import Flag, HostOptions, SeveralHosts
from selecttkd_jax.cli._overrides import Overrides, load, load_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluate:
    """Held-out KL at temperature 1, cross-entropy, top-1 agreement and acceptance rates of a student, or of several.

    Of a run it is the trained student. An option of the run is --section.field value, as in train: other held-out rows,
    another batch size.
    """

    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|CONFIG.toml")]
    """A run's directory (its config.toml means the same), or a configuration file: names the teacher and the data."""
    student: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL ...")] = ()
    """Students to evaluate instead: model directories or hub names. Left out: the run's trained one; of a configuration
    file its models.student, which is a student before training."""
    json: Flag = False
    """Print one JSON object instead of a table."""
    hosts: SeveralHosts = HostOptions()
    overrides: Overrides = field(default_factory=dict)

    def run(self) -> int:
        """Evaluates and prints a table, or JSON."""
        config, students = self._read()
        first = self.hosts.join(config.mesh.host_timeout)
        found = runs.evaluate_students(config, students)
        if not first:
            return 0
        if self.json:
            said = [{"student": student, **numbers} for student, numbers in zip(students, found, strict=True)]
            rows = config.data.held_out or ", ".join(source.path for source in config.data.training_sources())
            data = {"teacher": config.models.teacher, "held_out": rows}
            print(json.dumps({**data, "students": said}, indent=2))
        else:
            _print_table(students, found)
        return 0

    def _read(self) -> tuple[runs.RunConfig, list[str]]:
        """The configuration, and whom to evaluate by it."""
        target = expand_home(self.target)
        of_run = target if target.is_dir() else target.parent
        said = self.overrides.get("models", {}).get("student")
        students = list(self.student) or ([said] if said else [])
        if target.is_dir() or (target.name == "config.toml" and runs.is_run(of_run)):
            config = load_run(of_run, self.overrides, "evaluate")
            return config, students or [runs.trained_student(of_run)]
        config = load(target, self.overrides, "evaluate")
        if not students and (expand_home(config.output) / "student").is_dir():
            logger.warning(
                "evaluating %s, the student before training; the trained one: selecttkd evaluate %s",
                config.models.student,
                config.output,
            )
        return config, students or [config.models.student]


def _print_table(students: list[str], found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("held-out", *(Column(Text(student), overflow="fold") for student in students))
    for name in dict.fromkeys(name for numbers in found for name in numbers):
        values = [numbers.get(name) for numbers in found]
        shown = ["" if value is None else f"{value:,.0f}" if name == "tokens" else f"{value:.4f}" for value in values]
        table.add_row(name, *shown)
    Console().print(table)
