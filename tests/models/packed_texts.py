"""Rows of several texts, and attention over them by a dense mask: what the kernels for packed rows are held against."""

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax.models._attention import attend

LENGTH, HEADS, KEY_HEADS, HEAD_DIM = 256, 4, 2, 16
# Packed texts and padding; one text; a text that begins behind nothing; padding alone.
TEXTS = [(100, 56, 60), (256,), (7,), ()]


def make_rows(rows=TEXTS):
    """Positions and segments of rows that hold texts of so many tokens."""
    positions, segments = np.zeros((2, len(rows), LENGTH), np.int32)
    for row, texts in enumerate(rows):
        start = 0
        for number, count in enumerate(texts, 1):
            positions[row, start : start + count] = np.arange(count)
            segments[row, start : start + count] = number
            start += count
        positions[row, start:] = np.arange(start, LENGTH)
    return positions, segments


def make_arrays(rows=4):
    """Queries, keys and values."""
    rng = np.random.default_rng(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return tuple(rng.normal(size=(rows, LENGTH, count, HEAD_DIM)).astype(np.float32) for count in heads)


def plain(queries, keys, values, positions, segments):
    """Plain products under the mask of earlier tokens of a token's text."""
    mask = positions[:, None, :] <= positions[:, :, None]
    mask &= (segments[:, None, :] == segments[:, :, None]) & (segments != 0)[:, None, :]
    return attend(queries, keys, values, mask)


def loss_and_gradient(attention, arrays, segments):
    """A sum over real tokens, and its gradients to queries, keys and values."""

    def loss(arrays):
        mixed = attention(*arrays)
        return jnp.sum(jnp.where((segments != 0)[..., None, None], jnp.sin(mixed), 0.0))

    return jax.jit(jax.value_and_grad(loss))(arrays)
