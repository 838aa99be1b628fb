"""The mesh's axes by name, and which of them the compiler shards over: what pure functions know of a mesh."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are sharded."""
VOCABULARY_AXIS = "tensor"
"""The mesh axis over which the vocabulary is sharded."""
HEADS_AXIS = "tensor"
"""The mesh axis over which attention's heads are sharded."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def automatic_axes() -> dict[str, int]:
    """Sizes of the current mesh's axes that the compiler shards over: above 1, and not taken by a `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1}


def vary_alike(values: Any, *, like: Any) -> Any:
    """`values`, varying over every mesh axis of a `shard_map` over which anything in `like` does.

    `shard_map` types each array by the axes over which its devices may differ, and a loop has to carry the type it
    begins with: zeros that rows of other devices are added to differ from the start. The gradient to what did not vary
    is summed over the axes. Nothing is done outside `shard_map`, nor under its `check_vma=False`.
    """
    axes = frozenset().union(*(_varying_axes(leaf) for leaf in jax.tree.leaves(like)))

    def vary(leaf: Any) -> Any:
        missing = axes - _varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(vary, values) if axes else values


def _varying_axes(value: Any) -> frozenset[str]:
    return jax.typeof(value).manual_axis_type.varying


def any_mesh(
    *, like: str | None = None, drop: int = 0
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorates a pure function so that it runs on a mesh with `AxisType.Explicit` axes, too.

    Chunks, gathers and cumulative sums have no sharding that could be spelled out, so the function runs with the mesh's
    explicit axes made automatic. Its arrays stay where they are, and the gradient to an argument is sharded like it.
    Without explicit axes the function is called as it is.

    The mesh may mix explicit axes with automatic ones. JAX itself differentiates nothing on explicit axes without
    `jax.set_mesh`, and outside `jit` nothing that is sharded over an explicit axis of size 1 beside an automatic one.

    Args:
        like: The parameter, [positions, ...], whose sharding over the positions every result takes. None: every device
            has the results whole, as sums.
        drop: How many axes the parameter has after those of the results: 1 for logits.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            current = jax.sharding.get_abstract_mesh()
            if not current.empty and not current.explicit_axes:
                return function(*args, **kwargs)
            leaves, tree = jax.tree.flatten((args, kwargs))
            places = [place for place, leaf in enumerate(leaves) if _mesh_of(leaf).explicit_axes]
            mesh = _mesh_of(leaves[places[0]]) if current.empty and places else current
            if not mesh.explicit_axes:
                return function(*args, **kwargs)

            def with_automatic_axes(*arrays: jax.Array) -> Any:
                moved = dict(zip(places, arrays, strict=True))
                args, kwargs = tree.unflatten(moved.get(place, leaf) for place, leaf in enumerate(leaves))
                return function(*args, **kwargs)  # pyright: ignore[reportCallIssue] (the types are those of the call)

            spec = PartitionSpec()
            if like is not None:
                spec = _leading_spec(signature(function).bind(*args, **kwargs).arguments[like], drop)
            run: Any = jax.sharding.auto_axes(
                with_automatic_axes, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, spec)
            )
            return run(*(leaves[place] for place in places))

        return call

    return decorate


def _mesh_of(value: Any) -> AbstractMesh:
    """The mesh in the type of an array; the empty one of anything else."""
    return jax.typeof(value).sharding.mesh if isinstance(value, jax.Array) else AbstractMesh((), ())


def _leading_spec(value: Any, drop: int) -> PartitionSpec:
    """The sharding of all axes of an array but the last `drop`; what is on no mesh every device has whole."""
    if not _mesh_of(value).explicit_axes:
        return PartitionSpec()
    return PartitionSpec(*jax.typeof(value).sharding.spec[: value.ndim - drop])
