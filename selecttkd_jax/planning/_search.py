"""The largest batch that fits a target."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selecttkd_jax.planning._estimate import Estimate, estimate
from selecttkd_jax.planning._program import CompiledStep, TooLargeError, batch_divisor, compile_step
from selecttkd_jax.planning._targets import Target
from selecttkd_jax.runs import RunConfig
from selecttkd_jax.training import Pair

logger = logging.getLogger(__name__)

MOST_COMPILATIONS = 8


@dataclass(frozen=True)
class Largest:
    """The largest batch of one setting.

    Attributes:
        remat: What of a layer is kept, one of `models.REMATS`.
        batch_size: Rows of a batch, over all devices and micro-batches; 0 if not even the smallest fits.
        rows: Of them, those that a device works on at once.
        peak: Bytes of a device at this size.
        costs: What its step costs; None where nothing fits.
    """

    remat: str
    batch_size: int
    rows: int = 0
    peak: int = 0
    costs: Estimate | None = None


def largest_batches(
    config: RunConfig, pair: Pair, target: Target, devices: Sequence[Any], known: CompiledStep | None
) -> list[Largest]:
    """Searches the largest batch with large products kept and with nothing kept, everything else as configured.

    A batch grows by a row for each device that divides it and each micro-batch. What is found was compiled and fits,
    and the next larger one was, too, and does not (unless MOST_COMPILATIONS did not suffice to come so close).

    Args:
        config: Where to start.
        pair: Its models.
        target: What has to hold it.
        devices: The target's.
        known: The configured step, if it was compiled before.
    """
    unit = config.training.micro_batches * batch_divisor(config, devices)
    found = []
    for remat in ("kept", "full"):
        steps: dict[int, CompiledStep] = {}
        if known is not None and remat == config.models.remat:
            steps[config.data.batch_size] = known

        def sized(rows: int, remat: str = remat) -> RunConfig:
            data, setting = replace(config.data, batch_size=rows), replace(config.models, remat=remat)
            return replace(config, data=data, models=setting)

        def peak(units: int, remat: str = remat, steps: dict[int, CompiledStep] = steps) -> int | None:
            rows = units * unit
            if rows not in steps:
                logger.info("compiling for %s: batch %d, remat %s", target.name, rows, remat)
                try:
                    steps[rows] = compile_step(sized(rows), replace(pair, remat=remat), devices)
                except TooLargeError:
                    return None
            return steps[rows].memory.peak

        units = search(peak, target.device.usable_memory, start=max(1, config.data.batch_size // unit))
        rows = unit * units
        if rows:
            costs = estimate(sized(rows), target, steps[rows])
            found.append(Largest(remat, rows, units, steps[rows].memory.peak, costs))
        else:
            found.append(Largest(remat, 0))
    return found


def search(peak: Callable[[int], int | None], limit: float, start: int) -> int:
    """The largest n with `peak(n) <= limit`, for a peak that grows about linearly; 0 if `peak(1)` is too much.

    Args:
        peak: Costly; None where even the compiler gives up.
        limit: Bytes.
        start: A first guess, at least 1.
    """
    low, high = 0, None  # the largest that fits, the smallest that does not
    measured: dict[int, int] = {}
    guess = start
    for _ in range(MOST_COMPILATIONS):
        size = peak(guess)
        if size is not None:
            measured[guess] = size
        if size is not None and size <= limit:
            low = max(low, guess)
        else:
            high = guess if high is None else min(high, guess)
        if high is not None and high - low <= 1:
            break
        guess = _next_guess(low, high, _line_meets(measured, limit))
    return low


def _line_meets(measured: dict[int, int], limit: float) -> float | None:
    """Where the straight line through the two largest measured sizes meets the limit."""
    if len(measured) < 2:
        return None
    a, b = sorted(measured)[-2:]
    slope = (measured[b] - measured[a]) / (b - a)
    return None if slope <= 0 else b + (limit - measured[b]) / slope


def _next_guess(low: int, high: int | None, line: float | None) -> int:
    """Where the line says, if that is between what fits and what does not; else in the middle, or twice as far."""
    if high is None:
        return 2 * low if line is None else max(int(line), low + 1)
    if line is None or line >= high:
        return (low + high) // 2
    return min(max(int(line), low + 1), high - 1)
