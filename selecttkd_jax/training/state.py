"""What training changes from step to step: everything a checkpoint needs, and nothing of the teacher."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

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

    Copies, because the step donates its state: the caller's arrays stay valid. On a mesh, master weights and moments
    lie where the parameters lie.
    """

    def fresh(params: Params) -> TrainState:
        master = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return TrainState(jnp.zeros((), jnp.int32), master, optimizer.init(master), jax.random.key(seed))

    return jax.jit(fresh, out_shardings=state_shardings(params, optimizer))(params)


def state_shardings(params: Params, optimizer: optax.GradientTransformation) -> TrainState | None:
    """Where each part of a state lies, given where its parameters lie; None if they lie on no mesh.

    What the optimizer keeps of each parameter lies like it; all else is on every device.

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


def stream_key(key: Key, stream: str, step: jax.Array) -> Key:
    """The key of one named use of randomness at one step."""
    number = {"verification": 0, "adapters": 1}[stream]
    return jax.random.fold_in(jax.random.fold_in(key, number), step)
