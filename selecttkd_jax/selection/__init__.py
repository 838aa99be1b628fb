"""Which tokens count: acceptance of each position, the weight that follows from it, and rates that describe both.

Pure functions, student first, teacher second, never differentiated.
"""

from selecttkd_jax.selection.controls import entropy_gate, invert, label_in_top_k, random_gate
from selecttkd_jax.selection.ranking import at_most, median_split, top_fraction
from selecttkd_jax.selection.rates import (
    Rate,
    acceptance_rate,
    acceptance_rate_by_position,
    acceptance_rate_by_sequence,
    is_stop_token,
    overlap,
    rejected_weight_share,
    shadow_overlaps,
)
from selecttkd_jax.selection.scores import (
    divergence_gap,
    error_norm,
    excess_loss,
    random_scores,
    target_uncertainty,
)
from selecttkd_jax.selection.verifiers import (
    accept_all,
    greedy_top_k,
    hellinger,
    hellinger_gate,
    spec_k,
    spec_k_by_sampling,
)
from selecttkd_jax.selection.weights import TokenWeights, token_weights
