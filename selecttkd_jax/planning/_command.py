"""From a configuration and a target to printed tables."""

import logging

import jax

from selecttkd_jax import runs
from selecttkd_jax.planning._estimate import estimate
from selecttkd_jax.planning._machines import target_devices
from selecttkd_jax.planning._program import TooLargeError, compile_step
from selecttkd_jax.planning._report import largest_report, setting_report, step_report
from selecttkd_jax.planning._search import largest_batches
from selecttkd_jax.planning._targets import parse_target
from selecttkd_jax.runs import RunConfig

logger = logging.getLogger(__name__)


def plan(config: RunConfig, target: str, *, search: bool = True) -> bool:
    """Prints a plan; returns whether the configured step fits.

    Compiles on this machine's CPU, whatever devices it has.

    Args:
        config: The run.
        target: A machine by name, such as `tpu:v5e:4x4` or `gpu:h100:8` (see `parse_target`).
        search: Whether to search the largest batch that fits, too; takes several compilations.

    Raises:
        InputError: The target is unknown, its compiler missing, or the configuration does not suit it.
    """
    machine = parse_target(target)
    config = config.on_platform(machine.device.platform)
    pair = runs.abstract_pair(config)
    # An accelerator that is here would only be waited for.
    jax.config.update("jax_platforms", "cpu")
    devices = target_devices(machine)
    logger.info("compiling for %s: batch %d", machine.name, config.data.batch_size)
    try:
        step = compile_step(config, pair, devices)
        report = step_report(machine, step, estimate(config, machine, step))
    except TooLargeError as error:
        step, report = None, f"\nThe configured step does not fit: {error}\n"
    print(setting_report(config, machine) + report, end="", flush=True)
    if search:
        print(largest_report(config, machine, largest_batches(config, pair, machine, devices, step)), end="")
    return step is not None and step.memory.peak <= machine.device.usable_memory
