"""The numbers of a student without a loop."""

import jax

from selecttkd_jax import models
from selecttkd_jax.compilation import keep_programs
from selecttkd_jax.progress import progress_bar
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._evaluators import make_held_out
from selecttkd_jax.runs._identity import agreed_facts, describe_ingredients
from selecttkd_jax.runs._load import load_teacher
from selecttkd_jax.runs._prepare import check_context, check_models, read_held_out, tell_rows, tokenize
from selecttkd_jax.runs._specs import choose_attention, choose_packing, model_shardings
from selecttkd_jax.sharding import check_agreement, make_mesh
from selecttkd_jax.training import Frozen


def evaluate(config: RunConfig) -> dict[str, float]:
    """Held-out numbers of the student named in `config.models.student`."""
    keep_programs(config.training.compilation_cache)
    mesh = make_mesh(config.mesh)
    config = config.on_platform(mesh.devices.flat[0].platform)
    with jax.set_mesh(mesh):
        pair, tokenizer, stops = check_models(config)
        pair = choose_attention(choose_packing(config, pair, mesh), pair, mesh)
        student_shardings, teacher_shardings = model_shardings(mesh, config, pair)
        rows = tokenize(config.data, read_held_out(config.data), tokenizer, stops)
        tell_rows(rows, "held-out rows")
        check_context(pair, rows, "held-out rows")
        check_agreement(agreed_facts(config, describe_ingredients(pair, tokenizer, stops, {"held-out rows": rows})))
        frozen = Frozen(teacher=load_teacher(mesh, config, pair, rows, teacher_shardings))
        student = models.from_pretrained(config.models.student, shardings=student_shardings)
        held_out = make_held_out(mesh, config, pair, frozen, rows)
        with progress_bar("evaluating") as advance:
            return held_out(student.params, advance)
