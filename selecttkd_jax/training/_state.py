"""What training changes from step to step: everything a checkpoint needs, and nothing of the teacher."""

import zlib
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from selecttkd_jax._array_types import Key, Params, Scalar

_FIRST_STREAMS = {"verification": 0, "adapters": 1}


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

    Copies, because the step donates its state: the caller's arrays stay valid. On a mesh, master weights and moments
    have the shardings of the parameters.
    """

    def fresh(params: Params) -> TrainState:
        master = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return TrainState(jnp.zeros((), jnp.int32), master, optimizer.init(master), jax.random.key(seed))

    return jax.jit(fresh, out_shardings=state_shardings(params, optimizer))(params)


def state_shardings(params: Params, optimizer: optax.GradientTransformation) -> TrainState | None:
    """The shardings of each part of a state, given those of its parameters; None if they are on no mesh.

    What the optimizer keeps of each parameter is sharded like it; all else is replicated.

    Args:
        params: Arrays, or shapes with a sharding.
        optimizer: Whose state it is.
    """
    shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), params)
    meshes = {sharding.mesh for sharding in jax.tree.leaves(shardings) if isinstance(sharding, NamedSharding)}
    if not meshes:
        return None
    (mesh,) = meshes
    everywhere = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, shardings, moments, everywhere)  # type: ignore[arg-type]


def abstract_state(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings in place of the large arrays: what a checkpoint is restored into."""

    def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return replace(state, **jax.tree.map(abstract, {"params": state.params, "opt_state": state.opt_state}))


def stream_key(key: Key, stream: str, step: Scalar | int) -> Key:
    """The key of one named use of randomness at one step.

    Args:
        key: The run's.
        stream: Any name. Streams of different names are independent: each goes by the CRC-32 of its name, but for the
            two that are older than the rule.
        step: Finished steps, a scalar.
    """
    number = _FIRST_STREAMS.get(stream, zlib.crc32(stream.encode()))
    return jax.random.fold_in(jax.random.fold_in(key, number), step)
