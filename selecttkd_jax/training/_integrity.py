"""Whether arrays are whole: finite, and bit for bit those that were seen before."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax._array_types import Array

# Odd multipliers with well-mixed bits, one an axis: a weight's place counts, and padding an axis with zeros does not.
_PLACES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class LeafCheck(NamedTuple):
    """What one pass over an array tells.

    Attributes:
        checksum: The sum over entries of mix(bits) * odd(place), modulo 2^32, where `mix` is one to one with mix(0) = 0
            and `odd` an odd number that depends on the entry's indices. Whole numbers, so it is the same on every mesh;
            any change of a single entry changes it.
        finite: Whether it holds no NaN and no infinity.
    """

    checksum: int
    finite: bool


def check_leaves(tree: Any) -> dict[str, LeafCheck]:
    """Checksum and finiteness of each array in a tree, by its path; each is read once, where it is."""
    found = jax.device_get(_check_tree(tree))
    paths = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda node: isinstance(node, LeafCheck))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): LeafCheck(int(check.checksum), bool(check.finite))
        for path, check in paths
    }


def combine_checksums(checks: Mapping[str, LeafCheck]) -> int:
    """One number of 32 bits for all arrays of a tree and their paths."""
    return zlib.crc32(repr(sorted((path, check.checksum) for path, check in checks.items())).encode())


def list_not_finite(checks: Mapping[str, LeafCheck]) -> str:
    """The first array that holds NaN or infinity, and how many more do: `a/kernel and 2 more`; empty if none does."""
    found = [path for path, check in checks.items() if not check.finite]
    if not found:
        return ""
    return found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"


@jax.jit
def _check_tree(tree: Any) -> Any:
    return jax.tree.map(_check_array, tree)


def _check_array(leaf: Array) -> LeafCheck:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    finite = jnp.all(jnp.isfinite(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    bits = jax.lax.bitcast_convert_type(bits, _UNSIGNED[np.dtype(bits.dtype).itemsize])
    if bits.dtype == jnp.uint64:
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(_PLACES[axis % len(_PLACES)])
    place = (place ^ (place >> jnp.uint32(15))) * jnp.uint32(0x2C1B3C6D)
    place = (place ^ (place >> jnp.uint32(13))) | jnp.uint32(1)
    mixed = bits.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    mixed ^= mixed >> jnp.uint32(16)
    return LeafCheck(jnp.sum(mixed * place, dtype=jnp.uint32), finite)  # type: ignore[arg-type]
