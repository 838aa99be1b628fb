"""What training changes from step to step: everything a checkpoint needs, and nothing of the teacher."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from selecttkd_jax.array_types import Key, Params


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What is trained in float32, the optimizer's moments, the step and the run's key."""

    step: jax.Array
    """Finished optimizer steps, int32 scalar."""
    params: Params
    """The student's master weights, or only its adapters."""
    opt_state: Any
    """The optimizer's state."""
    key: Key
    """The run's one key; every use folds in the step and a named stream."""


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step, with float32 copies of `params` as master weights.

    Copies, because the step donates its state: the caller's arrays stay valid.
    """
    master = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), master, optimizer.init(master), jax.random.key(seed))


def stream_key(key: Key, stream: str, step: jax.Array) -> Key:
    """The key of one named use of randomness at one step."""
    number = {"verification": 0, "adapters": 1}[stream]
    return jax.random.fold_in(jax.random.fold_in(key, number), step)
