"""The mesh's axes by name, and which of them the compiler divides over: what pure functions know of a mesh."""

import jax
from jax.sharding import AxisType

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that divide the rows of a batch."""
VOCABULARY_AXIS = "tensor"
"""The mesh axis that divides the vocabulary."""


def automatic_axes() -> dict[str, int]:
    """Sizes of the current mesh's axes that the compiler divides over: above 1, and not taken by a `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1}
