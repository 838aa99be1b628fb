"""Records, tokenizers, tokenised rows and seeded, resumable, per-host batches."""

from selecttkd_jax.data.batches import Batch, BatchIterator, eval_batches, make_batches
from selecttkd_jax.data.config import DataConfig
from selecttkd_jax.data.records import Record, read_records, student_records
from selecttkd_jax.data.rendering import render_prompt
from selecttkd_jax.data.rows import Rows, tokenize_records
from selecttkd_jax.data.tokenizer import check_same_tokenizer, load_tokenizer, stop_ids, tokenizer_size
