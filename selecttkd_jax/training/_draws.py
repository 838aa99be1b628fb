"""What acceptances are compared with."""

import jax

from selecttkd_jax._array_types import Array, Key
from selecttkd_jax.data import Batch


def draw_uniforms(key: Key, batch: Batch) -> Array:
    """Draws from [0, 1) for the positions of a whole batch, `[B, T]`.

    Rows that share sequences have the draws that they have alone.
    """
    if batch.unpacked is None:
        return jax.random.uniform(key, batch.loss_mask.shape)
    alone = jax.random.uniform(key, (batch.unpacked.rows, batch.loss_mask.shape[1]))
    return alone.reshape(-1)[batch.unpacked.places]
