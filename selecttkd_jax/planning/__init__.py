"""Plans: the training step compiled for a machine that is not there, and what it needs of that machine."""

from selecttkd_jax.planning.command import PlanOptions, abstract_pair, plan
from selecttkd_jax.planning.estimate import Estimate, estimate
from selecttkd_jax.planning.machines import target_devices
from selecttkd_jax.planning.program import CompiledStep, Memory, TooLargeError, compile_step
from selecttkd_jax.planning.search import Largest, largest_batches
from selecttkd_jax.planning.targets import DEVICES, Device, Target, parse_target

__all__ = [
    "DEVICES",
    "CompiledStep",
    "Device",
    "Estimate",
    "Largest",
    "Memory",
    "PlanOptions",
    "Target",
    "TooLargeError",
    "abstract_pair",
    "compile_step",
    "estimate",
    "largest_batches",
    "parse_target",
    "plan",
    "target_devices",
]
