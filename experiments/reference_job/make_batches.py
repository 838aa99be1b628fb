"""Writes the token batches that both sides of the reference job read: GSM8K through our data room.

`input_ids`, `labels`, `loss_mask`, `positions` and `segment_ids`, each [steps, batch, length], in one .npz.
"""

import dataclasses
from pathlib import Path

import numpy as np

from selecttkd_jax import data


def write_batches(gsm8k: Path, model_directory: Path, output: Path, *, steps: int, batch: int, length: int) -> str:
    """Tokenises GSM8K's training rows and writes the first `steps` shuffled batches; returns the rows' summary."""
    tokenizer = data.load_tokenizer(model_directory)
    records = data.read_records(gsm8k, columns=("question", "answer"))
    rows = data.tokenize_records(records, tokenizer, length, data.stop_ids(tokenizer, model_directory))
    iterator = data.make_batches(rows, batch, length, seed=0)
    batches = [next(iterator) for _ in range(steps)]
    names = [field.name for field in dataclasses.fields(data.Batch) if getattr(batches[0], field.name) is not None]
    np.savez(output, **{name: np.stack([getattr(one, name) for one in batches]) for name in names})
    return rows.summary()
