"""Arrays between hosts and meshes: parameters and batches placed on devices, and gathered again."""

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import BATCH_AXES

Batch = TypeVar("Batch")


def make_array_from_slices(
    shape: tuple[int, ...], sharding: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """An array of which each process reads only what its own devices hold, and each slice once.

    `jax.make_array_from_callback` would read a slice anew for each device that holds it, and keep all of them on the
    host until the last is there; here there is one at a time.

    Args:
        shape: The global shape.
        sharding: How the array is sharded.
        read: Gives a slice of it, from a slice of each axis.
    """
    devices_of: dict[tuple, tuple[tuple[slice, ...], list[Any]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        devices_of.setdefault(bounds, (index, []))[1].append(device)
    shards = []
    for index, devices in devices_of.values():
        part = read(index)
        shards += [jax.device_put(part, device) for device in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def check_rows(mesh: Mesh, name: str, rows: int) -> None:
    """Raises InputError unless `rows`, called `name`, divide over the mesh's batch axes."""
    devices = row_devices(mesh)
    if rows % devices:
        product = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
        raise InputError(f"{name} = {rows} does not divide over mesh {product}; take a multiple of {devices}")


def row_devices(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are sharded."""
    return prod(mesh.shape[axis] for axis in BATCH_AXES)


def process_share(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Which part of a batch's rows this process needs: (p, P), the p-th of P equal parts.

    Processes that share a row of the mesh (a `tensor` axis over several hosts) need the same part. Where a process's
    rows do not follow on each other, it needs all of the batch: (0, 1).
    """
    spans = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((rows,)).values()
    return _find_share({index[0].indices(rows)[:2] for index in spans if index is not None}, rows)


def _find_share(spans: set[tuple[int, int]], rows: int) -> tuple[int, int]:
    """The part that `spans` (first row, row behind the last) make up together, or (0, 1)."""
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    held = sum(stop - start for start, stop in spans)
    if held != last - first or rows % held or first % held:
        return 0, 1
    return first // held, rows // held


def place_batch(mesh: Mesh, batch: Batch, rows: int) -> Batch:
    """Places a batch on the mesh, its rows sharded over the batch axes.

    Args:
        mesh: From `make_mesh`.
        batch: Pytree of NumPy arrays [b, ...]: this process's share of the rows (`process_share`), or all of them.
        rows: Rows of the global batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def place(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, leaf, (rows, *leaf.shape[1:]))

    return jax.tree.map(place, batch)


def gather_to_host(array: jax.Array, row: int | None = None) -> np.ndarray:
    """Gathers an array, or one row of its first axis, to this process's host.

    Where other processes hold shards of it, each of them has to call this at the same time.
    """
    if array.is_fully_addressable:
        return np.asarray(array if row is None else array[row])
    assert isinstance(array.sharding, NamedSharding)
    replicated = NamedSharding(array.sharding.mesh, PartitionSpec())
    if row is None:
        return np.asarray(jax.jit(_pass_on, out_shardings=replicated)(array))
    return np.asarray(jax.jit(_take_row, out_shardings=replicated)(array, np.int32(row)))


def _pass_on(array: jax.Array) -> jax.Array:
    return array


def _take_row(array: jax.Array, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, row, keepdims=False)
