"""Plans: the training step compiled for a machine that is not there, and what it needs of that machine."""

from selecttkd_jax.planning._command import plan
from selecttkd_jax.planning._estimate import Estimate, estimate
from selecttkd_jax.planning._machines import target_devices
from selecttkd_jax.planning._program import CompiledStep, Memory, TooLargeError, compile_step
from selecttkd_jax.planning._search import Largest, largest_batches
from selecttkd_jax.planning._targets import DEVICES, Device, Target, parse_target

__all__ = [
    "DEVICES",
    "CompiledStep",
    "Device",
    "Estimate",
    "Largest",
    "Memory",
    "Target",
    "TooLargeError",
    "compile_step",
    "estimate",
    "largest_batches",
    "parse_target",
    "plan",
    "target_devices",
]
