"""Where a method's batches come from."""

from selecttkd_jax.sources._adaptive_alpha import AdaptiveAlpha
from selecttkd_jax.sources._corpus import BesideCorpus
from selecttkd_jax.sources._engine import EngineConfig, EngineWriters
from selecttkd_jax.sources._engine_files import EngineFiles
from selecttkd_jax.sources._epoch_pairs import EpochPairs
from selecttkd_jax.sources._on_policy import OnPolicy
from selecttkd_jax.sources._packing import RowPacker
from selecttkd_jax.sources._pairs import Pairs, StoredPairs
from selecttkd_jax.sources._recorder import ROLLOUTS, Recorder, Taken, describe_responses
from selecttkd_jax.sources._replay import Replay
from selecttkd_jax.sources._rollout_files import RolloutFiles
from selecttkd_jax.sources._rollouts import Rewards, RolloutBuffer, Scorer
from selecttkd_jax.sources._stored import Stored, Unread
from selecttkd_jax.sources._writer import (
    MakeWriter,
    Rewrite,
    Role,
    Writers,
    replace_responses,
    split_prompts,
    unwritten,
)

__all__ = [
    "AdaptiveAlpha",
    "ROLLOUTS",
    "BesideCorpus",
    "EngineConfig",
    "EngineFiles",
    "EngineWriters",
    "EpochPairs",
    "MakeWriter",
    "OnPolicy",
    "Pairs",
    "Recorder",
    "Replay",
    "Rewards",
    "Rewrite",
    "Role",
    "RolloutBuffer",
    "RolloutFiles",
    "RowPacker",
    "Scorer",
    "Stored",
    "StoredPairs",
    "Taken",
    "Unread",
    "Writers",
    "describe_responses",
    "replace_responses",
    "split_prompts",
    "unwritten",
]
