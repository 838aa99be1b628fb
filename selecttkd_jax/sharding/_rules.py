"""Which axis of a parameter is sharded over which axis of the mesh.

A rule maps an axis letter (`_array_types`) to a mesh axis. A parameter's axes are spelled as one string, such as
"LDHE", so that its sharding follows from the rules, and nothing is said parameter by parameter.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax._errors import InputError

logger = logging.getLogger(__name__)

Rules = Mapping[str, str]
"""From axis letters to the mesh axes over which they are sharded; others are whole."""

_BY_WIDTH = {"D": "fsdp"}
_BY_PART = {"H": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
PRESETS: dict[str, Rules] = {
    "replicated": {},
    "fsdp": _BY_WIDTH,
    "tensor": _BY_PART,
    "fsdp+tensor": _BY_WIDTH | _BY_PART,
}
"""Rules by name."""

# Axes that are replicated where their size does not divide, and what that costs. All others are refused.
MAY_BE_REPLICATED = {
    "K": "key and value heads are replicated over this axis",
    "V": "embedding and head are replicated over this axis, and heads padded where logits are computed",
}


def parameter_shardings(mesh: Mesh, rules: Rules, logical_axes: Any, shapes: Any) -> Any:
    """The sharding of each parameter.

    Norm scales and other vectors over D are not sharded over `fsdp`: a gather would cost more than they weigh.

    Args:
        mesh: From `make_mesh`.
        rules: Axis letter -> mesh axis; `PRESETS` has the usual ones.
        logical_axes: Tree of axis letters, one string a parameter (`models.logical_axes`).
        shapes: Tree of arrays or shapes, the same tree.

    Returns:
        Tree of NamedSharding.

    Raises:
        InputError: A rule names no mesh axis, two axes of a parameter would be sharded over one mesh axis, or a size
            does not divide. Key/value heads and the vocabulary are replicated instead, which is logged.

    Example:
        >>> from selecttkd_jax.sharding import MeshConfig, make_mesh
        >>> shape = jax.ShapeDtypeStruct((8, 4), "float32")
        >>> shardings = parameter_shardings(make_mesh(MeshConfig()), PRESETS["fsdp"], {"head": "DV"}, {"head": shape})
        >>> tuple(shardings["head"].spec)
        ('fsdp', None)
    """
    for letter, axis in rules.items():
        if axis not in mesh.shape:
            raise InputError(f"rule {letter} -> {axis}: the mesh has no axis {axis}, only {', '.join(mesh.shape)}")
    replicated: dict[str, str] = {}

    def place(path: tuple, letters: str, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if len(letters) != len(leaf.shape):
            raise InputError(f"{name} has axes {letters}, but shape {leaf.shape}")
        return NamedSharding(mesh, PartitionSpec(*_choose_axes(mesh, rules, letters, leaf.shape, name, replicated)))

    shardings = jax.tree_util.tree_map_with_path(place, logical_axes, shapes)
    for letter, line in replicated.items():
        logger.info("%s; %s", line, MAY_BE_REPLICATED[letter])
    return shardings


def _choose_axes(
    mesh: Mesh, rules: Rules, letters: str, shape: tuple[int, ...], name: str, replicated: dict[str, str]
) -> list[str | None]:
    """The mesh axis of each of a parameter's axes; notes in `replicated` what could not be sharded."""
    vector = len(letters.replace("L", "")) == 1
    taken: dict[str, str] = {}
    axes: list[str | None] = []
    for letter, size in zip(letters, shape, strict=True):
        axis = rules.get(letter)
        if axis is None or (vector and axis == "fsdp"):
            axes.append(None)
            continue
        if axis in taken:
            raise InputError(
                f"{name} {letters} {shape}: {taken[axis]} and {letter} would both be sharded over mesh axis {axis} "
                f"({mesh.shape[axis]} devices); give one of them another axis"
            )
        taken[axis] = letter
        if size % mesh.shape[axis]:
            problem = f"{name} {shape}: {letter} = {size} does not divide over {axis} = {mesh.shape[axis]}"
            if letter not in MAY_BE_REPLICATED:
                raise InputError(f"{problem}; choose a mesh.{axis} that divides {size}")
            replicated.setdefault(letter, problem)
            axis = None
        axes.append(axis)
    return axes
