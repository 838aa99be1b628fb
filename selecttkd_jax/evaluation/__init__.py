"""How far a student is from its teacher: on rows neither was trained on, and on what a model writes in training."""

from selecttkd_jax.evaluation._held_out import HeldOut, HeldOutProgram, held_out_verifiers
from selecttkd_jax.evaluation._rollouts import Rollouts, SampleLog, split_text

__all__ = ["HeldOut", "HeldOutProgram", "Rollouts", "SampleLog", "held_out_verifiers", "split_text"]
