"""From a configuration and a target to printed tables."""

import logging
from collections.abc import Sequence
from typing import Any

import jax

from selecttkd_jax import runs
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import check_at_least
from selecttkd_jax.planning._estimate import estimate
from selecttkd_jax.planning._machines import target_devices
from selecttkd_jax.planning._program import TooLargeError, compile_step
from selecttkd_jax.planning._report import (
    largest_report,
    padding_report,
    run_report,
    setting_report,
    step_report,
    writing_report,
)
from selecttkd_jax.planning._run import padding, run_costs, writing
from selecttkd_jax.planning._search import largest_batches
from selecttkd_jax.planning._targets import Target, parse_target
from selecttkd_jax.runs import RunConfig
from selecttkd_jax.training import Pair

logger = logging.getLogger(__name__)


def plan(
    config: RunConfig,
    target: str,
    *,
    search: bool = True,
    fill: float | None = None,
    write: bool = False,
    price: float | None = None,
) -> bool:
    """Prints a plan; returns whether the configured step fits.

    Compiles on this machine's CPU, whatever devices it has.

    Args:
        config: The run.
        target: A machine by name, such as `tpu:v5e:4x4` or `gpu:h100:8` (see `parse_target`).
        search: Whether to search the largest batch that fits, too; takes several compilations.
        fill: The share of a batch that is no padding: what the padding costs is told, too.
        write: Whether to plan the writing of text, too.
        price: Of an hour of a device.

    Raises:
        InputError: The target is unknown, its compiler missing, or the configuration does not suit it.
    """
    if fill is not None:
        check_in_range("fill", fill, 0.01, 1)
    if price is not None:
        check_at_least("price per hour", price, 0)
    machine = parse_target(target)
    config = config.on_platform(machine.device.platform)
    pair = runs.abstract_pair(config)
    # An accelerator that is here would only be waited for.
    jax.config.update("jax_platforms", "cpu")
    # Nor can a program for devices that are not here be read back from where JAX may keep it.
    jax.config.update("jax_enable_compilation_cache", False)
    devices = target_devices(machine)
    logger.info("compiling for %s: batch %d", machine.name, config.data.batch_size)
    try:
        step = compile_step(config, pair, devices)
        costs = estimate(config, machine, step)
        report = step_report(machine, step, costs)
        if (whole := run_costs(config, pair, machine, devices, step, costs)) is not None:
            report += run_report(whole, price)
        if fill is not None:
            report += padding_report(config, padding(config, pair, machine, devices, step, fill))
    except TooLargeError as error:
        step, report = None, f"\nThe configured step does not fit: {error}\n"
    print(setting_report(config, machine) + report, end="", flush=True)
    if write:
        print(_plan_writing(config, pair, machine, devices), end="", flush=True)
    if search:
        print(largest_report(config, machine, largest_batches(config, pair, machine, devices, step)), end="")
    return step is not None and step.memory.peak <= machine.device.usable_memory


def _plan_writing(config: RunConfig, pair: Pair, machine: Target, devices: Sequence[Any]) -> str:
    try:
        return writing_report(writing(config, pair, machine, devices))
    except TooLargeError as error:
        return f"\nWriting does not fit: {error}\n"
