"""Records, tokenizers, tokenised rows and seeded, resumable, per-host batches."""

from selecttkd_jax.data._answers import AnswerFile, Finish
from selecttkd_jax.data._batches import (
    Batch,
    BatchIterator,
    Responses,
    Rollouts,
    Unpacked,
    WithCorpus,
    batch_shapes,
    eval_batches,
    make_batches,
)
from selecttkd_jax.data._config import RUN_DATE, DataConfig, SourceConfig
from selecttkd_jax.data._corpus import read_corpus
from selecttkd_jax.data._files import fingerprint_rows, is_hub_name
from selecttkd_jax.data._joining import join_rows
from selecttkd_jax.data._packing import PackedBatches, pack_batches
from selecttkd_jax.data._prompts import describe_prompt
from selecttkd_jax.data._records import Record, ResponseName, read_records, student_records
from selecttkd_jax.data._rendering import render_plain_prompt, render_prompt
from selecttkd_jax.data._repacking import Layout, lay_out_sequences, share_sequences
from selecttkd_jax.data._row_cache import fingerprint_tokenizer, load_rows
from selecttkd_jax.data._rows import Part, Rows
from selecttkd_jax.data._split import count_held_out, read_held_out, read_source
from selecttkd_jax.data._tokenize import tokenize_records
from selecttkd_jax.data._tokenizer import check_same_tokenizer, load_tokenizer, stop_ids, tokenizer_size

__all__ = [
    "RUN_DATE",
    "AnswerFile",
    "Batch",
    "BatchIterator",
    "DataConfig",
    "Finish",
    "Layout",
    "PackedBatches",
    "Part",
    "Record",
    "ResponseName",
    "Responses",
    "Rollouts",
    "Rows",
    "SourceConfig",
    "Unpacked",
    "WithCorpus",
    "batch_shapes",
    "check_same_tokenizer",
    "count_held_out",
    "describe_prompt",
    "eval_batches",
    "fingerprint_rows",
    "fingerprint_tokenizer",
    "is_hub_name",
    "join_rows",
    "lay_out_sequences",
    "load_rows",
    "load_tokenizer",
    "make_batches",
    "pack_batches",
    "read_corpus",
    "read_held_out",
    "read_records",
    "read_source",
    "render_plain_prompt",
    "render_prompt",
    "share_sequences",
    "stop_ids",
    "student_records",
    "tokenize_records",
    "tokenizer_size",
]
