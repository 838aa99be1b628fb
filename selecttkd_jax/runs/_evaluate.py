"""The numbers of students without a loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.compilation import keep_programs
from selecttkd_jax.evaluation import HeldOut
from selecttkd_jax.progress import progress_bar
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._evaluators import make_held_out
from selecttkd_jax.runs._finished import is_export_current
from selecttkd_jax.runs._identity import agreed_facts, describe_ingredients
from selecttkd_jax.runs._load import load_teacher
from selecttkd_jax.runs._prepare import check_context, check_models
from selecttkd_jax.runs._rows import tell_rows, tokenize
from selecttkd_jax.runs._specs import choose_attention, choose_packing, model_shardings
from selecttkd_jax.sharding import check_agreement, make_mesh
from selecttkd_jax.training import Frozen, Pair, latest_step


def evaluate(config: RunConfig) -> dict[str, float]:
    """Held-out numbers of the student named in `config.models.student`."""
    return evaluate_students(config, [config.models.student])[0]


def evaluate_students(config: RunConfig, students: Sequence[str]) -> list[dict[str, float]]:
    """Held-out numbers of several students, each a model directory or a hub name; the teacher is loaded once.

    Raises:
        InputError: One of them, or the configuration, is wrong; before a weight is read.
    """
    keep_programs(config.training.compilation_cache)
    mesh = make_mesh(config.mesh)
    config = config.on_platform(mesh.devices.flat[0].platform)
    configs = [replace(config, models=replace(config.models, student=student)) for student in students]
    with jax.set_mesh(mesh):
        checked = [check_models(each) for each in configs]
        tokenizer, stops = checked[0][1:]
        pairs = [
            choose_attention(choose_packing(each, pair, mesh), pair, mesh)
            for each, (pair, _, _) in zip(configs, checked, strict=True)
        ]
        shardings = [model_shardings(mesh, each, pair) for each, pair in zip(configs, pairs, strict=True)]
        rows = tokenize(config.data, data.read_held_out(config.data), tokenizer, stops)
        tell_rows(rows, "held-out rows")
        for each, pair in zip(configs, pairs, strict=True):
            check_context(pair, rows, "held-out rows")
            facts = describe_ingredients(pair, tokenizer, stops, {"held-out rows": rows})
            check_agreement(agreed_facts(each, facts))
        frozen = Frozen(teacher=load_teacher(mesh, configs[0], pairs[0], rows, shardings[0][1]))
        programs: dict[Pair, HeldOut] = {}
        found = []
        for each, pair, (student_shardings, _) in zip(configs, pairs, shardings, strict=True):
            if pair not in programs:  # students of one shape share a compiled program
                programs[pair] = make_held_out(mesh, each, pair, frozen, rows)
            student = models.from_pretrained(each.models.student, shardings=student_shardings)
            with progress_bar(f"evaluating {each.models.student}") as advance:
                found.append(programs[pair](student.params, advance))
        return found


def trained_student(directory: str | Path) -> str:
    """The student that a run has exported.

    Raises:
        InputError: There is none yet; says what there is.
    """
    directory = expand_home(directory)
    student = directory / "student"
    newest = latest_step(directory / "checkpoints")
    if (student / "config.json").is_file():
        if not is_export_current(directory):
            raise InputError(
                f"{student} is from before the run was told to go on, and has not ended since; selecttkd train "
                f"{directory} ends it, selecttkd export {directory} makes a model directory of its newest checkpoint "
                f"({newest}), and the name {student} alone means the old one"
            )
        return str(student)
    if newest is None:
        raise InputError(f"{directory} has neither a student nor a checkpoint yet; --student names another one")
    raise InputError(
        f"{directory} has no student yet; its newest checkpoint is of step {newest}: selecttkd export {directory} "
        "makes a model directory of it, which --student names"
    )
