"""Batches and parameters on their way to devices and back."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from selecttkd_jax._errors import InputError
from selecttkd_jax.sharding import MeshConfig, check_rows, make_array_from_slices, make_mesh, place_batch, process_share
from selecttkd_jax.sharding._placement import _find_share


@pytest.mark.parametrize(
    "spans, share",
    [
        ({(0, 4), (4, 8)}, (0, 2)),
        ({(8, 12), (12, 16)}, (1, 2)),
        ({(12, 16)}, (3, 4)),  # four devices of a tensor axis
        ({(0, 16)}, (0, 1)),
        ({(0, 4), (8, 12)}, (0, 1)),  # not one after the other: the whole batch is needed
        ({(4, 8), (8, 12)}, (0, 1)),  # no equal part of it
    ],
)
def test_a_process_takes_the_rows_of_its_devices(spans, share):
    assert _find_share(spans, 16) == share


def test_rows_are_sharded_over_the_batch_axes_in_order():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert process_share(mesh, 8) == (0, 1)
    batch = {"ids": np.arange(24).reshape(8, 3)}
    placed = place_batch(mesh, batch, 8)["ids"]
    np.testing.assert_array_equal(placed, batch["ids"])
    for shard in placed.addressable_shards:
        data, fsdp, _ = np.argwhere(mesh.devices == shard.device)[0]
        np.testing.assert_array_equal(shard.data, batch["ids"][4 * data + 2 * fsdp :][:2])


def test_rows_that_do_not_divide_are_refused_with_the_numbers():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    check_rows(mesh, "rows", 16)
    with pytest.raises(InputError, match="rows = 12 does not divide over mesh data 2 x fsdp 4; take a multiple of 8"):
        check_rows(mesh, "rows", 12)


def test_each_slice_is_made_once():
    asked = []

    def read(index):
        asked.append(index)
        return np.arange(32.0).reshape(4, 8)[index]

    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    array = make_array_from_slices((4, 8), NamedSharding(mesh, PartitionSpec(None, "fsdp")), read)
    np.testing.assert_array_equal(array, np.arange(32.0).reshape(4, 8))
    assert len(asked) == 4 and len({shard.device for shard in array.addressable_shards}) == 8
    jax.block_until_ready(array)
