"""Meshes, and where parameters, batches and activations lie on them. Pure: knows no model."""

from selecttkd_jax.sharding.agreement import check_agreement
from selecttkd_jax.sharding.constraints import divided_by_rows, exchanged, padded_vocabulary
from selecttkd_jax.sharding.hosts import Hosts, hosts_from_flags, join_hosts
from selecttkd_jax.sharding.mesh import MeshConfig, make_mesh
from selecttkd_jax.sharding.placement import array_from_slices, check_rows, place_batch, process_share, whole_on_host
from selecttkd_jax.sharding.rules import PRESETS, Rules, parameter_shardings

__all__ = [
    "PRESETS",
    "Hosts",
    "MeshConfig",
    "Rules",
    "array_from_slices",
    "check_agreement",
    "check_rows",
    "divided_by_rows",
    "exchanged",
    "hosts_from_flags",
    "join_hosts",
    "make_mesh",
    "padded_vocabulary",
    "parameter_shardings",
    "place_batch",
    "process_share",
    "whole_on_host",
]
