"""How many answers can be written at a time."""

import logging
import os
from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selecttkd_jax._mesh_axes import BATCH_AXES, HEADS_AXIS
from selecttkd_jax.models import DecoderConfig, count_params

logger = logging.getLogger(__name__)

# Beyond these a token costs as much as before, since its products fill the device: more slots would only end unevenly.
_MOST_ON_CPU, _MOST_ELSEWHERE = 32, 256
# Of the memory that is free once the weights are loaded; the rest is for reading prompts and for what others take.
_SHARE = 0.7
# Arrays of a slot's logits that drawing a token may hold at once.
_LOGITS = 6


def fit_slots(
    mesh: Mesh,
    configs: Sequence[DecoderConfig],
    length: int,
    dtype: jnp.dtype,
    prompts: int | None = None,
    *,
    loaded: bool = True,
) -> int:
    """The number of slots that the memory has room for: bytes that are free, by bytes that a slot takes.

    A slot takes its row of the cache, 2 L K E S numbers, and some arrays of logits. Of several processes, all get the
    number of the one with the least room.

    Args:
        mesh: Where the weights are.
        configs: The shapes of the models that write together, or of the one that writes.
        length: S, tokens of a row in the cache.
        dtype: The cache's.
        prompts: How many there are to answer; no more slots are of use. None: not known yet.
        loaded: Whether the weights are there already. Those that are still to come are counted, and of a CPU's memory
            all is, so that a run that resumes finds the same number.
    """
    tensor = mesh.shape.get(HEADS_AXIS, 1)
    itemsize = jnp.dtype(dtype).itemsize
    cache = sum(_numbers_a_token(config, tensor) for config in configs) * length * itemsize
    logits = _LOGITS * sum(config.vocab_size for config in configs) * 4
    free, on_cpu = _free_bytes(mesh, loaded)
    if free is not None and not loaded:
        free -= sum(map(count_params, configs)) * itemsize // tensor
    most = _MOST_ON_CPU if on_cpu else _MOST_ELSEWHERE
    rooms = most if free is None else min(most, int(_SHARE * free) // (cache + logits))
    rooms = max(rooms, 1)
    if jax.process_count() > 1:
        rooms = int(multihost_utils.process_allgather(np.int32(rooms)).min())
    slots = rooms * prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    slots = slots if prompts is None else min(slots, prompts)
    logger.info(
        "%s%d slots: each takes %.1f MiB (%.1f of them keys and values of %d tokens), and %s",
        "at most " if prompts is None else "",
        slots,
        (cache + logits) / 2**20,
        cache / 2**20,
        length,
        "how much memory there is is not known" if free is None else f"{free / 2**30:.1f} GiB a device are free",
    )
    return slots


def _numbers_a_token(config: DecoderConfig, tensor: int) -> int:
    """Keys and values of a token on a device."""
    heads = config.num_kv_heads // tensor if config.num_kv_heads % tensor == 0 else config.num_kv_heads
    return 2 * config.num_layers * heads * config.head_dim


def _free_bytes(mesh: Mesh, now: bool) -> tuple[int | None, bool]:
    """Bytes that are free on the fullest of this process's devices, where that is known; and whether it is a CPU.

    Of a CPU, what is free `now` or all that there is.
    """
    devices = list(mesh.local_devices)
    if devices[0].platform == "cpu":
        try:
            free = os.sysconf("SC_AVPHYS_PAGES" if now else "SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):  # not every system says
            return None, True
        return free // len(devices), True
    stats = [device.memory_stats() or {} for device in devices]
    if not all({"bytes_limit", "bytes_in_use"} <= each.keys() for each in stats):
        return None, False
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats), False
