"""Meshes, and where parameters and batches lie on them. Pure: knows no model."""

from selecttkd_jax.sharding.mesh import MeshConfig, make_mesh
from selecttkd_jax.sharding.rules import PRESETS, Rules, parameter_shardings

__all__ = ["PRESETS", "MeshConfig", "Rules", "make_mesh", "parameter_shardings"]
