"""Objectives: divergence and selection over a batch, as sums and counts."""

from selecttkd_jax.distill.chunks import cached_chunk_size
from selecttkd_jax.distill.distillm2 import (
    ReferenceGap,
    adaptive_skew,
    balance_published,
    balance_released,
    balance_smooth,
    confidence_gap,
)
from selecttkd_jax.distill.fused_head import fused_head, map_logits
from selecttkd_jax.distill.fused_two_stream import HiddenStream, fused_two_stream
from selecttkd_jax.distill.named import ObjectiveConfig
from selecttkd_jax.distill.objective import Objective
from selecttkd_jax.distill.sums import NORMALIZERS, LossSums, TokenTerms, reduce_terms, token_coefficients
from selecttkd_jax.distill.two_stream import Stream, TwoStreamObjective, TwoStreamSums
from selecttkd_jax.distill.vocabulary import log_shared_width, mask_vocabulary, match_vocabulary, shared_width
