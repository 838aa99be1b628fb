"""One pass over arrays tells whether they are finite and whether a bit of them has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax.training import check_leaves, combine_checksums, list_not_finite

DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint32", "bool"]


def draw(dtype, shape=(4, 6, 5)):
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape)
    return jnp.asarray(numbers, jnp.dtype(dtype))


def checksum(array):
    return check_leaves({"a": array})["a"].checksum


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_flipped_bit_changes_the_checksum(dtype):
    array = np.asarray(draw(dtype))
    whole = checksum(jnp.asarray(array))
    width = 1 if dtype == "bool" else 8 * array.dtype.itemsize
    random = np.random.default_rng(1)
    for _ in range(32):
        changed = array.copy()
        place = int(random.integers(changed.size)) * array.dtype.itemsize + int(random.integers(max(width // 8, 1)))
        changed.reshape(-1).view(np.uint8)[place] ^= 1 << int(random.integers(min(width, 8)))
        assert checksum(jnp.asarray(changed)) != whole


def test_places_count():
    array = draw("float32")
    assert checksum(array) != checksum(array[::-1]) != checksum(jnp.swapaxes(array, 0, 1))
    assert checksum(jnp.zeros((3,)).at[0].set(1.0)) != checksum(jnp.zeros((3,)).at[2].set(1.0))


def test_a_checksum_is_the_same_on_every_mesh_and_with_zeros_behind():
    array = draw("float32", (8, 6, 5))
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    for spec in (PartitionSpec("data"), PartitionSpec("data", "tensor"), PartitionSpec(("data", "tensor"))):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        assert checksum(placed) == checksum(array)
    assert checksum(jnp.pad(array, ((0, 3), (0, 0), (0, 1)))) == checksum(array)


def test_paths_are_part_of_the_whole():
    a, b = jnp.ones((2,)), jnp.zeros((2,))
    both = check_leaves({"layers": {"a": a, "b": b}})
    assert list(both) == ["layers/a", "layers/b"]
    assert combine_checksums(both) != combine_checksums(check_leaves({"layers": {"a": b, "b": a}}))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_not_finite_is_named(value, dtype):
    tree = {name: jnp.ones((3, 2), jnp.dtype(dtype)) for name in "abcd"} | {"key": jax.random.key(0), "n": jnp.int32(3)}
    assert list_not_finite(check_leaves(tree)) == ""
    tree["b"] = tree["b"].at[2, 1].set(value)
    assert list_not_finite(check_leaves(tree)) == "b"
    tree["d"] = tree["d"].at[0, 0].set(value)
    assert list_not_finite(check_leaves(tree)) == "b and 1 more"
