"""What the compiled decode loop does to weights and cache: it reads them, and copies, pads or transposes nothing."""

import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax.generation import Decoder, Sampling

CONFIG = models.DecoderConfig(97, 32, 72, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8)
ROWS, LENGTH = 5, 192
MOVES = ("copy", "pad", "transpose", "concatenate", "gather", "convert", "reverse", "slice", "dynamic-slice")


@pytest.fixture(scope="module")
def program():
    decoder = Decoder(CONFIG, Sampling(temperature=0, max_new_tokens=64))
    params = models.unstack_layers(models.init_params(CONFIG, jax.random.key(0)))
    slots = decoder.make_slots(params, ROWS, LENGTH, jax.random.key(0))
    return Decoder.run.lower(decoder, params, slots, np.full(8, -1, np.int32), np.int32(0)).compile()


def moves(text, least):
    """Instructions outside of fusions that move at least so many elements: (opcode, shape)."""
    found = []
    for shape, opcode in re.findall(r"= \w+\[([\d,]+)\][^ ]* ([\w-]+)\(", text):
        if opcode in MOVES and prod(map(int, shape.split(","))) >= least:
            found.append((opcode, shape))
    return found


def test_the_loop_moves_no_keys_values_or_weights(program):
    # The smallest array that matters: a layer's keys or values; kernels of this model are smaller.
    cache = ROWS * CONFIG.num_kv_heads * CONFIG.head_dim * LENGTH
    assert moves(program.as_text(), cache) == []
    # The head is read where it is.
    assert ("copy", f"{CONFIG.vocab_size},{CONFIG.hidden_size}") not in moves(program.as_text(), 1)


def test_what_is_looked_for_would_be_found():
    shape = (ROWS, CONFIG.num_kv_heads, CONFIG.head_dim, LENGTH)
    swap = jax.jit(lambda x: x.swapaxes(2, 3)).lower(jnp.zeros(shape)).compile().as_text()
    assert moves(swap, prod(shape)), swap


def test_the_cache_is_updated_in_place(program):
    cache = 2 * CONFIG.num_layers * ROWS * CONFIG.num_kv_heads * CONFIG.head_dim * LENGTH * 4
    sizes = program.memory_analysis()
    assert sizes.alias_size_in_bytes >= cache
    assert sizes.temp_size_in_bytes < cache / 2
