"""AdamW with warm-up, a schedule, clipping and a decay mask."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from selecttkd_jax._array_types import Params
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 5e-5
    """Peak learning rate."""
    schedule: str = "cosine"
    """How the rate falls after the warm-up: cosine, linear, or constant (not at all)."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the rate rises from zero to its peak."""
    warmup_steps: int | None = None
    """Steps in which it does, in place of a share: the same ones if the run is given more steps later. Left out:
    warmup_fraction counts."""
    final_fraction: float = 0.0
    """Share of the peak rate that cosine and linear fall towards; a step after the last would have it."""
    b1: float = 0.9
    """Decay of the mean of the gradients."""
    b2: float = 0.95
    """Decay of the mean of the squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices; norms, biases and DoRA's magnitudes are never decayed."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 leaves gradients alone."""
    moment_dtype: str = "float32"
    """In which the mean of the gradients is kept: float32, or bfloat16 for two bytes less a trained weight. The mean of
    their squares stays float32: at bfloat16's eight bits, small changes to it would be lost."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"optimizer.{name} must be above 0 and finite, got {getattr(self, name)}")
        check_one_of("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))
        check_in_range("optimizer.warmup_fraction", self.warmup_fraction, 0, 1)
        if self.warmup_steps is not None:
            check_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        check_in_range("optimizer.final_fraction", self.final_fraction, 0, 1)
        check_in_range("optimizer.b1", self.b1, 0, 1, include_high=False)
        check_in_range("optimizer.b2", self.b2, 0, 1, include_high=False)
        check_at_least("optimizer.weight_decay", self.weight_decay, 0)
        check_at_least("optimizer.clip_norm", self.clip_norm, 0)
        check_one_of("optimizer.moment_dtype", self.moment_dtype, ("float32", "bfloat16"))


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The rate of each step: a linear rise over the warm-up, then the schedule's fall to the end.

    Step s of the warm-up's w takes the rate (s + 1) / w of the peak, so the first step already learns.
    """
    warmup = round(config.warmup_fraction * total_steps) if config.warmup_steps is None else config.warmup_steps
    rest = max(total_steps - warmup, 1)
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    fall = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
        "linear": optax.linear_schedule(peak, end, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return fall
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, fall], [warmup])


def decay_mask(params: Params) -> Params:
    """True for the matrices, False for norm scales, biases and DoRA's magnitudes, which decay would only shrink."""

    def is_matrix(path: tuple, _: jax.Array) -> bool:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        return names[-1] not in ("bias", "magnitude") and not any("norm" in name for name in names)

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW under the schedule.

    Args:
        config: Rates and decays.
        total_steps: Optimizer steps of the whole run, over which the schedule extends.

    Returns:
        A gradient transformation for float32 master parameters.
    """
    adamw = optax.adamw(
        learning_rate_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.dtype(config.moment_dtype),
    )
    if config.clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
