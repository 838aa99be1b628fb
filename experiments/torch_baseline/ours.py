"""The same job with this library's own training step. Its command line and result are those of train.py.

Command:   python experiments/torch_baseline/ours.py TEACHER STUDENT BATCHES.npz RESULT.json [options of train.py]
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from job import Settings, read_command_line

from selecttkd_jax import data, distill, models, selection, training
from selecttkd_jax._array_types import Params


def make_objective(settings: Settings) -> distill.Objective:
    """The library's objective for the job."""
    return distill.ObjectiveConfig(
        divergence=settings.divergence,
        alpha=settings.alpha if "skew" in settings.divergence else None,
        verifier=settings.verifier.removesuffix("_expected"),
        k=None if settings.verifier == "accept_all" else settings.k,
        floor=settings.floor,
        normalizer=settings.normalizer,
    ).build()


def train(teacher: Path, student: Path, batches: Mapping[str, np.ndarray], settings: Settings) -> Iterator[dict]:
    """Trains the student, one step a batch, and yields what each step measured."""
    teacher_model, student_model = models.from_pretrained(teacher), models.from_pretrained(student)
    # Every column of the heads counts, as it does in PyTorch.
    pair = training.Pair(student_model.config, teacher_model.config, student_model.config.vocab_size)
    total_steps = len(batches["input_ids"])
    config = training.OptimizerConfig(
        learning_rate=settings.learning_rate,
        warmup_fraction=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    optimizer = training.make_optimizer(config, total_steps)
    state = training.init_state(student_model.params, optimizer, seed=settings.seed)
    del student_model  # the state holds its own copy
    expected = settings.verifier.endswith("_expected")
    train_step = training.make_train_step(
        training.OneStream(pair, make_objective(settings), expected=expected), optimizer
    )

    @jax.jit
    def greedy_verdicts(params: Params, teacher_params: Params, batch: data.Batch) -> jax.Array:
        return selection.greedy_top_k(*pair.logits(params, teacher_params, batch), k=settings.k)

    for step in range(total_steps):
        batch = data.Batch(
            **{one.name: batches[one.name][step] for one in dataclasses.fields(data.Batch) if one.name in batches}
        )
        record = {"step": step + 1}
        if settings.verifier == "greedy_top_k":
            # The step reports sums alone; each verdict takes another forward pass, before the step and not timed.
            accepted = greedy_verdicts(state.params, teacher_model.params, batch)
            record["verdicts"] = "".join(str(int(verdict)) for verdict in np.asarray(accepted)[batch.loss_mask])
        started = time.perf_counter()
        state, measured = train_step(state, training.Frozen(teacher_model.params), batch)
        measured = jax.device_get(measured)
        seconds = time.perf_counter() - started
        means = measured["sums"].means()
        record |= {"loss": means["loss"], "tar": means["tar"], "grad_norm": float(measured["grad_norm"])}
        yield record | {"seconds": seconds}


def main() -> None:
    """Trains as the command line says, prints a line a step and writes the result."""
    job = read_command_line("Distil with SelecTKD in selecttkd_jax.")
    records = []
    for record in train(job.teacher, job.student, np.load(job.batches), job.settings):
        print("  ours  step {step:2d}  loss {loss:.5f}  {seconds:6.2f} s".format(**record), flush=True)
        records.append(record)
    job.result.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main()
