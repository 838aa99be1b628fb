"""Devices of a target that is not there: enough for a compiler, nothing that runs."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from selecttkd_jax._errors import InputError
from selecttkd_jax._extras import install_command
from selecttkd_jax.planning._targets import Target


def target_devices(target: Target) -> Sequence[Any]:
    """The target's devices, in the order in which a mesh is made of them.

    Raises:
        InputError: The compiler for the target is not installed, or knows no machine of this shape.
    """
    if target.device.platform == "cpu":
        return _cpu_devices(target)
    make = _tpu_topology if target.device.platform == "tpu" else _gpu_topology
    try:
        return make(target).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"target {target.name}: {str(error).splitlines()[0]}") from None


def _tpu_topology(target: Target) -> topologies.TopologyDescription:
    _require(("libtpu",), target, "tpu-plan")
    # Else the library asks this machine's metadata server which TPU it is, and complains that there is none.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", f"{target.model}-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no TPU is touched, so several plans may run at once
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    shape = "x".join(map(str, target.shape))
    return topologies.get_topology_desc(f"{target.model}:{shape}", "tpu")


def _gpu_topology(target: Target) -> topologies.TopologyDescription:
    _require(("jax_cuda12_plugin", "jax_cuda13_plugin"), target, "gpu-plan")
    per_host = target.count // target.hosts
    return topologies.get_topology_desc(
        target.name, "cuda", topology=f"1x{target.hosts}x{per_host}", target_config=gpu_description(target)
    )


@contextlib.contextmanager
def described_cudnn(devices: Sequence[Any]) -> Iterator[None]:
    """Lowers attention for GPUs that are not there: jax would ask this machine for its cuDNN and its GPU.

    The compiler is told by `gpu_description`, in which the same release and the same GPU stand.
    """
    if devices[0].platform != "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo  # no public name leads there

    capability = _numbers(devices[0].compute_capability)
    answers = {
        "check_cudnn_version": lambda: _CUDNN[0] * 10_000 + _CUDNN[1] * 100,
        "check_compute_capability": lambda least: capability >= _numbers(least),
        "is_cuda_compute_capability_equal": lambda other: capability == _numbers(other),
    }
    asked = {name: getattr(fused_attention_stablehlo, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(fused_attention_stablehlo, name, answer)
        yield
    finally:
        for name, question in asked.items():
            setattr(fused_attention_stablehlo, name, question)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def _cpu_devices(target: Target) -> Sequence[Any]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the devices exist already
            jax.config.update("jax_num_cpu_devices", target.count)
    devices = jax.devices("cpu")
    if len(devices) < target.count:
        raise InputError(
            f"target {target.name}: this process has {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={target.count} before it starts"
        )
    return devices[: target.count]


def _require(modules: Sequence[str], target: Target, extra: str) -> None:
    """Raises InputError unless one of the modules is there."""
    if not any(importlib.util.find_spec(module) for module in modules):
        raise InputError(
            f"planning for {target.name} needs its compiler, which is not installed here; {install_command(extra)}"
        )


_CUDNN = (9, 8)

# Compute capability, multiprocessors, float32 units in each, level-2 cache, clock in GHz, shared memory of a
# multiprocessor and of a block (NVIDIA, CUDA C++ Programming Guide, and the whitepapers of each architecture; of
# Blackwell as openxla/xla states it in xla/backends/gpu/target_config/specs).
_AMPERE = ("8", "0", 108, 64, 40 * 2**20, 1.41, 164 * 2**10, 163 * 2**10, "NVIDIA A100-SXM4")
_ADA = ("8", "9", 142, 128, 96 * 2**20, 2.52, 100 * 2**10, 99 * 2**10, "NVIDIA L40S")
_HOPPER = ("9", "0", 132, 128, 50 * 2**20, 1.98, 228 * 2**10, 227 * 2**10, "NVIDIA H100")
_BLACKWELL = ("10", "0", 148, 128, 132_644_864, 1.965, 228 * 2**10, 227 * 2**10, "NVIDIA B200")
_GRACE_BLACKWELL = ("10", "0", 152, 128, 135_528_448, 2.062, 228 * 2**10, 227 * 2**10, "NVIDIA GB200")
_ARCHITECTURES = {
    "a100-40gb": _AMPERE,
    "a100-80gb": _AMPERE,
    "l40s": _ADA,
    "h100": _HOPPER,
    "h200": _HOPPER,
    "b200": _BLACKWELL,
    "gb200": _GRACE_BLACKWELL,
}


def gpu_description(target: Target) -> str:
    """What XLA wants to know of a GPU, as the text of its `GpuTargetConfigProto`."""
    major, minor, cores, units, cache, clock, core_shared, block_shared, name = _ARCHITECTURES[target.model]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {clock}
  l2_cache_size: {cache}
  memory_bandwidth: {target.device.memory_rate:.0f}
  device_memory_size: {target.device.memory}
  shared_memory_per_core: {core_shared}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {block_shared}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}
device_description_str: "{name}"
"""
