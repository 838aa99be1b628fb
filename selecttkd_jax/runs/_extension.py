"""More steps for a run than it began with: when that may be, and what becomes of its schedules.

A schedule lies over the steps of the whole run. Once there are more of them it lies over the new number, so that the
rate goes on from where a longer run would stand: a cosine that had come to its end rises again, as it must for the
further steps to teach anything. The steps that were taken keep what they learned at their own rates.
"""

from dataclasses import replace

import numpy as np

from selecttkd_jax._errors import InputError
from selecttkd_jax.methods import DistiLlm, DistiLlm2, ImitKd
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.training import OptimizerConfig, learning_rate_schedule


def with_length_of(there: RunConfig, here: RunConfig) -> RunConfig:
    """`there` with the steps, or epochs, of `here` where these are more; else as it is.

    Raises:
        InputError: They are more, and the method divides its steps into parts that cannot change afterwards.
    """
    option = "steps" if here.training.epochs is None else "epochs"
    if (there.training.epochs is None) != (here.training.epochs is None):
        return there
    before, now = getattr(there.training, option), getattr(here.training, option)
    if now <= before:
        return there
    if isinstance(here.method, DistiLlm2):
        raise InputError(
            f"training.{option} was {before} and is {now}: method {here.method.name} divides its steps into epochs, "
            "and cannot be given more of them afterwards; choose another output"
        )
    return replace(there, training=replace(there.training, **{option: now}))


def describe_extension(config: RunConfig, before: int, done: int) -> tuple[str, bool]:
    """One sentence about a run of `before` steps that goes on to `config.training.steps`, `done` of them taken.

    Returns:
        The sentence, and whether what was trained so far is what a run of this length from the start had trained.
    """
    after = config.training.steps
    rates = [_rates(config.optimizer, total, done + 1) for total in (before, after)]
    said = f"the run goes on from {before} to {after} steps"
    others = [f"the schedule of method {config.method.name}"] if isinstance(config.method, ImitKd | DistiLlm) else []
    if config.objective.build_schedules(before) != config.objective.build_schedules(after):
        others.append("the schedule of [objective]")
    if np.array_equal(rates[0][:done], rates[1][:done]) and not others:
        return f"{said}, as one of {after} steps from the start would", True
    said += (
        f": the {config.optimizer.schedule} schedule lies over {after} steps from here on, and the learning rate of "
        f"step {done + 1} is {rates[1][done]:.3g} after {rates[0][done - 1]:.3g}"
    )
    for other in others:
        said += f"; so does {other}"
    return f"{said}; a run of {after} steps from the start would have come here otherwise", False


def _rates(optimizer: OptimizerConfig, total: int, count: int) -> np.ndarray:
    return np.asarray(learning_rate_schedule(optimizer, total)(np.arange(count))) * np.ones(count, np.float32)
