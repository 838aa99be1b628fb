"""Meshes, and how parameters, batches and activations are sharded over them. Pure: knows no model."""

from selecttkd_jax.sharding._agreement import check_agreement
from selecttkd_jax.sharding._constraints import pad_vocabulary, reshard_to_rows, shard_rows, shard_rows_and_heads
from selecttkd_jax.sharding._mesh import MeshConfig, make_mesh
from selecttkd_jax.sharding._placement import (
    check_rows,
    gather_to_host,
    make_array_from_slices,
    place_batch,
    process_share,
    row_devices,
)
from selecttkd_jax.sharding._rules import PRESETS, Rules, parameter_shardings

__all__ = [
    "PRESETS",
    "MeshConfig",
    "Rules",
    "check_agreement",
    "check_rows",
    "gather_to_host",
    "make_array_from_slices",
    "make_mesh",
    "pad_vocabulary",
    "parameter_shardings",
    "place_batch",
    "process_share",
    "reshard_to_rows",
    "row_devices",
    "shard_rows",
    "shard_rows_and_heads",
]
