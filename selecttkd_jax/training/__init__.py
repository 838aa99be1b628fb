"""Protocols of losses and sources, the step that takes any loss, the loop that takes any source; optimizer, state."""

from selecttkd_jax.training._checkpoint import Checkpoints, Restored, latest_step, list_steps
from selecttkd_jax.training._diagnosis import find_broken_logits
from selecttkd_jax.training._health import Health
from selecttkd_jax.training._integrity import LeafCheck, check_leaves, combine_checksums, list_not_finite
from selecttkd_jax.training._loop import LoopConfig, run_loop
from selecttkd_jax.training._losses import LabelCrossEntropy, LabelSums, OneStream, TwoStreams
from selecttkd_jax.training._optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from selecttkd_jax.training._pair import Frozen, Pair
from selecttkd_jax.training._policy_loss import PolicyGradient, score_labels
from selecttkd_jax.training._pretraining import PretrainingSums, SurveyedWithPretraining, WithPretraining
from selecttkd_jax.training._protocols import (
    Describer,
    Evaluator,
    Explainer,
    Learner,
    Loss,
    Method,
    Report,
    Source,
    Sums,
    Surveyor,
)
from selecttkd_jax.training._state import TrainState, abstract_state, init_state, state_shardings, stream_key
from selecttkd_jax.training._step import StepMetrics, TrainStep, make_train_step
from selecttkd_jax.training._surveyed import RankedStream, SurveyedStream
from selecttkd_jax.training._trained import Trained, in_host_memory, read_trained

__all__ = [
    "Checkpoints",
    "Describer",
    "Evaluator",
    "Explainer",
    "Frozen",
    "Health",
    "LabelCrossEntropy",
    "LabelSums",
    "Learner",
    "LeafCheck",
    "LoopConfig",
    "Loss",
    "Method",
    "OneStream",
    "OptimizerConfig",
    "Pair",
    "PolicyGradient",
    "PretrainingSums",
    "RankedStream",
    "Report",
    "Restored",
    "Source",
    "StepMetrics",
    "Sums",
    "SurveyedStream",
    "SurveyedWithPretraining",
    "Surveyor",
    "TrainState",
    "TrainStep",
    "Trained",
    "TwoStreams",
    "WithPretraining",
    "abstract_state",
    "check_leaves",
    "combine_checksums",
    "find_broken_logits",
    "in_host_memory",
    "init_state",
    "latest_step",
    "learning_rate_schedule",
    "list_not_finite",
    "list_steps",
    "make_optimizer",
    "make_train_step",
    "read_trained",
    "run_loop",
    "score_labels",
    "state_shardings",
    "stream_key",
]
