"""A run whose student's text comes from a server."""

import json
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from selecttkd_jax import models
from selecttkd_jax._array_types import Params
from selecttkd_jax.data import Rows
from selecttkd_jax.methods import DistiLlm2, warn_of_old_text
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._export import save_student
from selecttkd_jax.runs._identity import describe_config
from selecttkd_jax.runs._prepare import Prepared
from selecttkd_jax.sources import EngineFiles, EngineWriters, MakeWriter
from selecttkd_jax.training import check_leaves, combine_checksums


def make_engine(
    config: RunConfig,
    directory: Path,
    mesh: Mesh,
    prepared: Prepared,
    student: models.Pretrained,
    initial: Params,
    identity: Mapping[str, Any],
    others: MakeWriter,
) -> EngineWriters | None:
    """The writers of a run with an [engine] section; None without.

    Args:
        config: The run's.
        directory: `OUTPUT`.
        mesh: The run's.
        prepared: Tokenizer, stop ids and rows.
        student: Where its config files come from; it has what `initial` are adapters of.
        initial: What is trained, as it is before the first step.
        identity: What else the run is made with.
        others: Makes the teacher's writers.
    """
    if config.engine is None:
        return None
    warn_of_staleness(config)
    start = combine_checksums(check_leaves(initial))
    made_with = json.dumps([describe_config(config), start, dict(identity)], sort_keys=True)
    dtype = jnp.dtype(config.models.compute_dtype)
    return EngineWriters(
        others,
        config.engine,
        partial(save_student, config, student, stop_ids=prepared.stop_ids, dtype=dtype),
        directory / "engine",
        EngineFiles(directory / "rollouts", zlib.crc32(made_with.encode())),
        mesh,
        prepared.tokenizer,
        prepared.stop_ids,
        find_end(prepared.held_out_rows, prepared.stop_ids),
    )


def warn_of_staleness(config: RunConfig) -> None:
    """Says so where the student would learn by a reverse divergence from text of older weights than it expects."""
    divergence = config.method.on_student if isinstance(config.method, DistiLlm2) else config.objective.divergence
    if config.engine is not None and divergence is not None:
        warn_of_old_text(divergence, config.engine.every - 1)


def find_end(rows: Rows, stop_ids: tuple[int, ...]) -> int:
    """The stop id that responses end with: of several, a template writes one."""
    last = Counter(int(tokens[mask][-1]) for tokens, mask in zip(rows.tokens, rows.response, strict=True))
    return max(stop_ids, key=lambda index: last[index])
