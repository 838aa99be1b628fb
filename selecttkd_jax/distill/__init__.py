"""Objectives: divergence and selection over a batch, as sums and counts."""

from selecttkd_jax.distill._chunks import cached_chunk_size
from selecttkd_jax.distill._distillm2 import (
    BALANCES,
    Balance,
    ReferenceGap,
    adaptive_skew,
    balance_published,
    balance_released,
    balance_smooth,
    confidence_gap,
)
from selecttkd_jax.distill._fused_head import fused_head, map_logits
from selecttkd_jax.distill._fused_policy import Policy, PolicySums, fused_policy
from selecttkd_jax.distill._fused_two_stream import HiddenStream, fused_two_stream
from selecttkd_jax.distill._inputs import Head, Tokens
from selecttkd_jax.distill._named import ObjectiveConfig
from selecttkd_jax.distill._objective import Objective
from selecttkd_jax.distill._schedules import SCHEDULES, Schedule, Schedules
from selecttkd_jax.distill._shadows import ShadowSums
from selecttkd_jax.distill._sums import (
    NORMALIZERS,
    LossSums,
    ShadowedSums,
    TokenTerms,
    reduce_terms,
    token_coefficients,
)
from selecttkd_jax.distill._two_stream import Stream, TwoStreamObjective, TwoStreamSums
from selecttkd_jax.distill._vocabulary import log_shared_width, mask_vocabulary, match_vocabulary, shared_width

__all__ = [
    "BALANCES",
    "NORMALIZERS",
    "SCHEDULES",
    "Balance",
    "Head",
    "HiddenStream",
    "LossSums",
    "Objective",
    "ObjectiveConfig",
    "Policy",
    "PolicySums",
    "ReferenceGap",
    "Schedule",
    "Schedules",
    "ShadowSums",
    "ShadowedSums",
    "Stream",
    "TokenTerms",
    "Tokens",
    "TwoStreamObjective",
    "TwoStreamSums",
    "adaptive_skew",
    "balance_published",
    "balance_released",
    "balance_smooth",
    "cached_chunk_size",
    "confidence_gap",
    "fused_head",
    "fused_policy",
    "fused_two_stream",
    "log_shared_width",
    "map_logits",
    "mask_vocabulary",
    "match_vocabulary",
    "reduce_terms",
    "shared_width",
    "token_coefficients",
]
