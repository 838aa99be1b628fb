"""Text from a model: sampling rules, prefill and decode with a key/value cache; and text from a server."""

from selecttkd_jax.generation._client import Answer, Server, ask_server
from selecttkd_jax.generation._decode import Decoder, decode
from selecttkd_jax.generation._fit import fit_slots
from selecttkd_jax.generation._generate import BUCKET, cache_length, generate, write_answers
from selecttkd_jax.generation._interleave import Interleaver, KeepRule, KeepShare, KeepTopK, interleave
from selecttkd_jax.generation._layout import default_dtype, lay_out
from selecttkd_jax.generation._sampling import Sampling, sample

__all__ = [
    "BUCKET",
    "Answer",
    "Decoder",
    "Interleaver",
    "KeepRule",
    "KeepShare",
    "KeepTopK",
    "Sampling",
    "Server",
    "ask_server",
    "cache_length",
    "decode",
    "default_dtype",
    "fit_slots",
    "generate",
    "interleave",
    "lay_out",
    "sample",
    "write_answers",
]
