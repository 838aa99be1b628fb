"""Optimizer, state, step, checkpoints and loop."""

from selecttkd_jax.training.checkpoint import Checkpoints, latest_step
from selecttkd_jax.training.loop import LoopConfig, run_loop
from selecttkd_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from selecttkd_jax.training.state import TrainState, abstract_state, init_state, state_shardings, stream_key
from selecttkd_jax.training.step import StepMetrics, TrainStep, make_train_step

__all__ = [
    "Checkpoints",
    "LoopConfig",
    "OptimizerConfig",
    "StepMetrics",
    "TrainState",
    "TrainStep",
    "abstract_state",
    "init_state",
    "latest_step",
    "learning_rate_schedule",
    "make_optimizer",
    "make_train_step",
    "run_loop",
    "state_shardings",
    "stream_key",
]
