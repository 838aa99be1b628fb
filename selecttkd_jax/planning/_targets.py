"""Machines to plan for: what each device can do, and how `--target` names so many of them.

Rates are the vendors' peaks, for dense matrices; nothing reaches them, so a time that follows from them is a lower
bound. Memory is what a program can have: on TPUs as their compiler states it, on GPUs as the driver does.
"""

import os
import re
from dataclasses import dataclass
from math import prod

from selecttkd_jax._errors import InputError, check_one_of

GIB = 2**30
EXAMPLES = "tpu:v5p:2x2x2, tpu:v5e:4x4, gpu:a100-80gb:4, gpu:h100:8, cpu:8"


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        platform: `tpu`, `gpu` or `cpu`.
        memory: Bytes a program can have.
        flops: Peak operations a second with 16-bit operands; None where none is stated.
        flops_float32: The same with float32 operands at JAX's default precision: TF32 on GPUs, one bfloat16 pass on
            TPUs.
        memory_rate: Bytes a second to and from that memory.
        link_rate: Bytes a second that a device sends to its neighbours, all links together.
        hosts_rate: The same for collectives over several hosts: where each device of a host has an adapter of its own,
            all of them work on the host's share, so this is their sum if that is less than `link_rate`.
        per_host: Devices that those links join: those of a host, or of several in one NVLink domain.
        reserve: Share of the memory that libraries and buffers of the communication need for themselves.
        source: Where the numbers are from.
    """

    platform: str
    memory: int
    flops: float | None = None
    flops_float32: float | None = None
    memory_rate: float | None = None
    link_rate: float | None = None
    hosts_rate: float | None = None
    per_host: int = 8
    reserve: float = 0.0
    source: str = ""

    @property
    def usable_memory(self) -> float:
        """Bytes that a step may have."""
        return self.memory * (1 - self.reserve)


def _tpu(memory_gib: float, flops: float, memory_rate: float, link_rate: float, per_host: int, page: str) -> Device:
    return Device(
        platform="tpu",
        memory=int(memory_gib * GIB),
        flops=flops,
        flops_float32=flops,
        memory_rate=memory_rate,
        link_rate=link_rate,
        hosts_rate=link_rate,
        per_host=per_host,
        source=f"docs.cloud.google.com/tpu/docs/{page}; ICI one way, all links; memory as the compiler states it",
    )


def _gpu(
    memory: int,
    flops: float,
    flops_float32: float,
    memory_rate: float,
    link_rate: float,
    hosts_rate: float,
    sheet: str,
    *,
    per_host: int = 8,
    links: str = "NVLink",
) -> Device:
    return Device(
        platform="gpu",
        memory=memory,
        flops=flops,
        flops_float32=flops_float32,
        memory_rate=memory_rate,
        link_rate=link_rate,
        hosts_rate=hosts_rate,
        per_host=per_host,
        reserve=0.1,
        source=f"NVIDIA's data sheet of the {sheet}, dense; {links} one way; between hosts "
        f"{hosts_rate / 1e9:.0f} GB/s for {per_host} GPUs",
    )


DEVICES: dict[str, dict[str, Device]] = {
    "tpu": {
        "v5e": _tpu(15.75, 197e12, 819e9, 200e9, 8, "v5e"),
        "v5p": _tpu(95.74, 459e12, 2765e9, 600e9, 4, "v5p"),
        "v6e": _tpu(31.25, 918e12, 1638e9, 400e9, 8, "v6e"),
    },
    "gpu": {
        "a100-40gb": _gpu(42_297_786_368, 312e12, 156e12, 1555e9, 300e9, 200e9, "A100 40GB SXM"),
        "a100-80gb": _gpu(85_100_068_864, 312e12, 156e12, 2039e9, 300e9, 200e9, "A100 80GB SXM"),
        "l40s": _gpu(47_810_936_832, 362e12, 183e12, 864e9, 32e9, 32e9, "L40S", links="PCIe 4.0 x16"),
        "h100": _gpu(84_942_979_072, 989e12, 494e12, 3352e9, 450e9, 400e9, "H100 SXM"),
        "h200": _gpu(151_397_597_184, 989e12, 494e12, 4800e9, 450e9, 400e9, "H200 SXM"),
        "b200": _gpu(191_514_411_008, 2250e12, 1125e12, 7672e9, 900e9, 400e9, "HGX B200"),
        "gb200": _gpu(197_897_748_480, 2500e12, 1250e12, 7928e9, 900e9, 900e9, "GB200 NVL72", per_host=72),
    },
}
"""What a device can do, by platform and name."""


@dataclass(frozen=True)
class Target:
    """Some devices that work together.

    Attributes:
        name: As given, such as `tpu:v5p:2x2x2`.
        model: The device's name, such as `v5p`.
        device: What one of them can do.
        shape: How many of them, by axis of the machine.
    """

    name: str
    model: str
    device: Device
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of devices."""
        return prod(self.shape)

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return -(-self.count // self.device.per_host)


def parse_target(text: str) -> Target:
    """Reads `tpu:MODEL:AxB[xC]`, `gpu:MODEL:COUNT` or `cpu:COUNT`.

    Raises:
        InputError: No such platform, device or shape.

    Example:
        >>> parse_target("tpu:v5p:2x2x2").count
        8
    """
    platform, _, rest = text.partition(":")
    check_one_of(f"target {text!r}: platform", platform, ("tpu", "gpu", "cpu"))
    if platform == "cpu":
        count = _count(text, rest)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
        return Target(text, "cpu", Device("cpu", memory, per_host=count, source="this machine's memory"), (count,))
    model, _, size = rest.partition(":")
    check_one_of(f"target {text!r}: {platform} model", model, DEVICES[platform])
    device = DEVICES[platform][model]
    if platform == "gpu":
        count = _count(text, size)
        if count > device.per_host and count % device.per_host:
            raise InputError(f"target {text!r}: more than {device.per_host} GPUs come in groups of {device.per_host}")
        return Target(text, model, device, (count,))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        raise InputError(f"target {text!r}: a TPU slice has a shape, such as {EXAMPLES.partition(', gpu')[0]}")
    return Target(text, model, device, tuple(int(axis) for axis in size.split("x")))


def _count(text: str, number: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", number):
        raise InputError(f"target {text!r} needs a number of devices; such as {EXAMPLES}")
    return int(number)
