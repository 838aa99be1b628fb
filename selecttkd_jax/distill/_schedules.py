"""Numbers of an objective that move over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Scalar
from selecttkd_jax._errors import check_at_least, check_one_of

SCHEDULES = ("constant", "linear", "cosine")
"""How a number moves from a run's first step to its last: see `Schedule`."""


@dataclass(frozen=True)
class Schedule:
    """From one number at the first step to another at the last; hashable.

        f = step / (steps - 1)
        "linear"    start + (end - start) f
        "cosine"    end + (start - end) (1 + cos(pi f)) / 2

    Attributes:
        kind: "constant" (`start` throughout), "linear" or "cosine".
        start: At the first step.
        end: At the last step and after it.
        steps: Of the whole run.
    """

    kind: str
    start: float
    end: float
    steps: int

    def __post_init__(self):
        check_one_of("schedule", self.kind, SCHEDULES)
        check_at_least("steps", self.steps, 1)

    def __call__(self, step: int | Array) -> Scalar:
        """The number at a step, counted from 0; float32."""
        progress = jnp.minimum(jnp.asarray(step).astype(jnp.float32) / max(self.steps - 1, 1), 1.0)
        if self.kind == "cosine":
            progress = 0.5 * (1.0 - jnp.cos(math.pi * progress))
        elif self.kind == "constant":
            progress = jnp.zeros_like(progress)
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Schedules:
    """The schedules of an objective's numbers; None for one that stays as the objective has it.

    Attributes:
        floor: Of the weight of rejected tokens.
        temperature: Of the divergence's temperature.
        k: Of the verifier's k, rounded to the nearest whole number.
    """

    floor: Schedule | None = None
    temperature: Schedule | None = None
    k: Schedule | None = None

    def at(self, step: int | Array) -> dict[str, Array]:
        """What moves, at a step: options of `Tokens` and of an objective's call, and none where all stays."""
        moving = {name: getattr(self, name) for name in ("floor", "temperature", "k")}
        found = {name: schedule(step) for name, schedule in moving.items() if schedule is not None}
        if "k" in found:
            found["k"] = jnp.floor(found["k"] + 0.5).astype(jnp.int32)
        return jax.lax.stop_gradient(found)
