"""From a configuration and a target to printed tables."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from selecttkd_jax import runs
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.planning._estimate import estimate
from selecttkd_jax.planning._machines import target_devices
from selecttkd_jax.planning._program import CompiledStep, TooLargeError, compile_step
from selecttkd_jax.planning._report import (
    largest_report,
    padding_report,
    run_report,
    setting_report,
    step_report,
    uncounted_report,
    writing_report,
)
from selecttkd_jax.planning._run import padding, run_costs, writing
from selecttkd_jax.planning._search import largest_batches
from selecttkd_jax.planning._targets import Target, parse_target
from selecttkd_jax.runs import RunConfig
from selecttkd_jax.sharding import make_mesh
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
        if config.data.packing == "sequences":
            raise InputError(
                "--fill is for rows with padding behind them, and data.packing = sequences leaves none: leave one out"
            )
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
    config = runs.choose_packing(config, pair, make_mesh(config.mesh, devices))
    logger.info("compiling for %s: batch %d", machine.name, config.data.batch_size)
    report = setting_report(config, machine)
    try:
        step = compile_step(config, pair, devices)
    except TooLargeError as error:
        step = None
        report += f"\nThe configured step does not fit: {error}\n"
    else:
        report += _plan_step(config, pair, machine, devices, step, fill, price)
    print(report, end="", flush=True)
    if write:

        def written() -> str:
            return writing_report(writing(config, pair, machine, devices))

        print(_or_too_large("Writing", written), end="", flush=True)
    if search:
        print(largest_report(config, machine, largest_batches(config, pair, machine, devices, step)), end="")
    return step is not None and _fits(step, machine)


def _fits(step: CompiledStep, machine: Target) -> bool:
    return step.memory.peak <= machine.device.usable_memory


def _plan_step(
    config: RunConfig,
    pair: Pair,
    machine: Target,
    devices: Sequence[Any],
    step: CompiledStep,
    fill: float | None,
    price: float | None,
) -> str:
    """What a step needs and takes and, where it fits, what the run and its padding do."""
    costs = estimate(config, machine, step)
    report = step_report(machine, step, costs)
    if not _fits(step, machine):
        return report

    def run() -> str:
        whole = run_costs(config, pair, machine, devices, step, costs)
        return "" if whole is None else run_report(whole, price)

    def packing() -> str:
        assert fill is not None
        return padding_report(config, padding(config, pair, machine, devices, step, fill))

    counted = config.training.epochs is None
    report += _or_too_large("The evaluation", run) if counted else uncounted_report()
    return report if fill is None else report + _or_too_large("The packed step", packing)


def _or_too_large(what: str, told: Callable[[], str]) -> str:
    """What is told of a program, or that it does not fit."""
    try:
        return told()
    except TooLargeError as error:
        return f"\n{what} does not fit: {error}\n"
