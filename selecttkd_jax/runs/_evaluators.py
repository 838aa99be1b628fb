"""What a run evaluates its student by."""

from dataclasses import replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from selecttkd_jax import data
from selecttkd_jax.evaluation import HeldOut, Rollouts, SampleLog, held_out_verifiers
from selecttkd_jax.metrics import MetricsWriter
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._prepare import Prepared
from selecttkd_jax.selection._controls import surveyed
from selecttkd_jax.sharding import place_batch
from selecttkd_jax.sources import Recorder, Role
from selecttkd_jax.training import Frozen, Pair


def make_held_out(mesh: Mesh, config: RunConfig, pair: Pair, frozen: Frozen, rows: data.Rows) -> HeldOut:
    """The evaluation on a run's held-out rows, with the acceptance rates at its own k."""
    # No more rows at once than a training step takes.
    rows_at_once = config.data.batch_size // config.training.micro_batches
    return HeldOut(
        pair,
        frozen,
        data.eval_batches(rows, rows_at_once, config.data.max_length),
        held_out_verifiers(config.objective.k or 5),
        every=config.training.eval_every,
        memory_budget=config.training.head_memory,
        place=partial(place_batch, mesh, rows=rows_at_once),
    )


def make_rollouts(
    mesh: Mesh,
    config: RunConfig,
    pair: Pair,
    frozen: Frozen,
    prepared: Prepared,
    shapes: Any,
    recorder: Recorder,
    writer: MetricsWriter,
) -> list[Rollouts]:
    """The looks at what models write, by the run's own verifier, or greedy top-5 where it selects nothing.

    Where the run's verifier has no eyes, but the rate of another, it is that other one.

    One at each stream of two; at one stream it is the student's where the student has a part in it.
    """
    sampling, parts = config.method.sampling, config.training.micro_batches
    if sampling is None or not config.method.writes:
        return []
    roles: tuple[Role, ...] = ("teacher", "student")
    if not isinstance(shapes, data.Responses):
        roles = ("student",) if "student" in config.method.writes else ("teacher",)
    objective = config.objective
    if objective.verifier == "accept_all":
        objective = replace(objective, verifier="greedy_top_k")
    verifier = objective.build_verifier()
    decode = partial(prepared.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [
        Rollouts(
            role,
            pair,
            frozen,
            partial(recorder.taken, role),
            surveyed(verifier) or verifier,
            stop_ids=prepared.stop_ids,
            longest=min(sampling.max_new_tokens, config.data.max_length),
            every=config.logging.samples_every or config.training.eval_every,
            parts=parts,
            place=partial(place_batch, mesh, rows=config.data.batch_size // parts),
            show=SampleLog(role, decode, writer.write_samples),
            memory_budget=config.training.head_memory,
        )
        for role in roles
    ]
