"""What a run runs on, for its record."""

import os
import platform
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

from selecttkd_jax._provenance import library_commit, library_version

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def describe_environment(mesh: Mesh) -> dict[str, Any]:
    """Versions, devices and processes, as plain JSON data; nothing that names a person or a machine."""
    device = mesh.devices.flat[0]
    packages = {name: found for name in _PACKAGES if (found := _version(name)) is not None}
    return {
        "selecttkd_jax": library_version(),
        "commit": library_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{mesh.devices.size} x {device.device_kind} ({device.platform})",
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
