"""The device mesh: three named axes, from sizes in a configuration."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.sharding._rules import PRESETS

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged, and how each model is sharded over them."""

    data: int = 1
    """Devices over which batches are sharded and weights replicated. -1: as many as are left."""
    fsdp: int = 1
    """Devices over which batches and weights are sharded; a weight is gathered when used. -1: what is left."""
    tensor: int = 1
    """Devices over which heads, MLPs and the vocabulary are sharded. -1: what is left."""
    student: str = "fsdp+tensor"
    """How the student's weights are sharded: replicated, fsdp, tensor, or fsdp+tensor."""
    teacher: str = "fsdp+tensor"
    """The same of the teacher."""
    host_timeout: int = 100
    """Of a run on several hosts: seconds without a sign of life after which a host counts as dead and the rest stop."""
    xla_flags: tuple[str, ...] = ()
    """Options of XLA for compiling the training step, for example: xla_tpu_enable_async_collective_fusion=true."""

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise InputError(f"mesh.{axis} must be at least 1, or -1 for the devices that are left; got {size}")
        if self.sizes.count(-1) > 1:
            raise InputError(f"only one mesh axis can be -1; got data, fsdp, tensor = {self.sizes}")
        for name in ("student", "teacher"):
            check_one_of(f"mesh.{name}", getattr(self, name), PRESETS)
        check_at_least("mesh.host_timeout", self.host_timeout, 1)
        for flag in self.xla_flags:
            if not re.fullmatch(r"(--)?xla_\w+=\S+", flag):
                raise InputError(f"mesh.xla_flags takes options such as xla_name=value, got {flag!r}")

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """`xla_flags` as `jax.jit` takes them."""
        pairs = (flag.removeprefix("--").split("=", 1) for flag in self.xla_flags)
        return {name: {"true": True, "false": False}.get(value, value) for name, value in pairs}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sizes of data, fsdp and tensor, -1 as it is."""
        return self.data, self.fsdp, self.tensor


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a configuration, its axes named data, fsdp and tensor in this order.

    Neighbouring devices share a tensor axis, which talks most; the data axis, which talks least, spans hosts.

    Args:
        config: Sizes of the axes.
        devices: What to arrange; all devices of all processes if None.

    Returns:
        A mesh whose axes are all `AxisType.Auto`: the compiler shards what is not annotated.

    Raises:
        InputError: The mesh is larger than the machine, -1 finds no multiple of the other axes, or there are
            several processes and the mesh leaves out devices.

    Example:
        >>> dict(make_mesh(MeshConfig(data=1)).shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill_minus_one(config.sizes, len(devices))
    needed = prod(sizes)
    asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if needed > len(devices):
        raise InputError(f"the mesh {asked} needs {needed} devices, but this machine has {len(devices)}")
    if needed < len(devices):
        hint = "mesh.fsdp = -1 or mesh.data = -1 takes them all"
        if len({device.process_index for device in devices}) > 1:
            raise InputError(f"the mesh {asked} takes {needed} of {len(devices)} devices in several processes; {hint}")
        logger.warning("the mesh %s takes %d of %d devices; %s", asked, needed, len(devices), hint)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])


def _fill_minus_one(sizes: tuple[int, ...], device_count: int) -> tuple[int, ...]:
    if -1 not in sizes:
        return sizes
    fixed = prod(size for size in sizes if size != -1)
    left, rest = divmod(device_count, fixed)
    if rest or not left:
        asked = ", ".join(f"{axis} = {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(f"mesh {asked}: {device_count} devices are not a multiple of {fixed}")
    return tuple(left if size == -1 else size for size in sizes)
