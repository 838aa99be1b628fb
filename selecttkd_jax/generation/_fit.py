"""How many answers can be written at a time."""

import logging
import os
from math import prod

import jax.numpy as jnp
from jax.sharding import Mesh

from selecttkd_jax._mesh_axes import BATCH_AXES, HEADS_AXIS
from selecttkd_jax.models import DecoderConfig

logger = logging.getLogger(__name__)

# Beyond these a token costs as much as before, since its products fill the device: more slots would only end unevenly.
_MOST_ON_CPU, _MOST_ELSEWHERE = 32, 256
# Of the memory that is free once the weights are loaded; the rest is for reading prompts and for what others take.
_SHARE = 0.7
# Arrays of a slot's logits that drawing a token may hold at once.
_LOGITS = 6


def fit_slots(mesh: Mesh, config: DecoderConfig, length: int, dtype: jnp.dtype, prompts: int) -> int:
    """The number of slots that the memory has room for: bytes that are free, by bytes that a slot takes.

    A slot takes its row of the cache, 2 L K E S numbers, and some arrays of logits.

    Args:
        mesh: Where the weights are already.
        config: The model's shape.
        length: S, tokens of a row in the cache.
        dtype: The cache's.
        prompts: How many there are to answer; no more slots are of use.
    """
    tensor = mesh.shape.get(HEADS_AXIS, 1)
    heads = config.num_kv_heads // tensor if config.num_kv_heads % tensor == 0 else config.num_kv_heads
    cache = 2 * config.num_layers * heads * config.head_dim * length * jnp.dtype(dtype).itemsize
    logits = _LOGITS * config.vocab_size * 4
    free, on_cpu = _free_bytes(mesh)
    most = _MOST_ON_CPU if on_cpu else _MOST_ELSEWHERE
    rooms = most if free is None else min(most, int(_SHARE * free) // (cache + logits))
    rows = prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    slots = min(max(rooms, 1) * rows, prompts)
    logger.info(
        "%d slots: each takes %.1f MiB (%.1f of them keys and values of %d tokens), and %s",
        slots,
        (cache + logits) / 2**20,
        cache / 2**20,
        length,
        "how much memory there is is not known" if free is None else f"{free / 2**30:.1f} GiB a device are free",
    )
    return slots


def _free_bytes(mesh: Mesh) -> tuple[int | None, bool]:
    """Bytes that are free on the fullest of this process's devices, where that is known; and whether it is a CPU."""
    devices = list(mesh.local_devices)
    if devices[0].platform == "cpu":
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):  # not every system says
            return None, True
        return free // len(devices), True
    stats = [device.memory_stats() or {} for device in devices]
    if not all({"bytes_limit", "bytes_in_use"} <= each.keys() for each in stats):
        return None, False
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats), False
