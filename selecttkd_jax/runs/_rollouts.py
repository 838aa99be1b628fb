"""Where a run keeps the text that its models write, and how its rows are told there."""

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from selecttkd_jax import data
from selecttkd_jax.sources import RolloutFiles


def make_rollout_files(
    config: data.DataConfig,
    directory: Path,
    batches: data.BatchIterator | data.PackedBatches,
    sources: Sequence[str],
    tokenizer: Any,
    identity: Mapping[str, Any],
) -> RolloutFiles:
    """The files below `directory`.

    Args:
        config: Where the records come from. Their prompts are read again when the first text is written, since most
            runs write none and need not keep them.
        directory: `OUTPUT/rollouts`.
        batches: The run's, which say what rows a step has.
        sources: Where each row came from.
        tokenizer: Of both models.
        identity: What the run is made with.
    """

    @cache
    def read_prompts() -> dict[str, dict[str, Any]]:
        records = (data.read_source(config, source, 0)[0] for source in config.training_sources())
        return {record.source: data.describe_prompt(record) for some in records for record in some}

    def describe(step: int) -> list[dict[str, Any]]:
        rows = [sources[number] for number in batches.list_rows(step)]
        return [{**read_prompts()[row], "row": row} for row in rows]

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    made_with = zlib.crc32(json.dumps(identity, sort_keys=True).encode())
    return RolloutFiles(directory, describe=describe, decode=decode, identity=made_with)
