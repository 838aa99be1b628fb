"""Which tokens count: acceptance of each position, the weight that follows from it, and rates that describe both.

What holds for every verifier `f(student_logits, teacher_logits, **options)` here is said once:

- Logits as in `losses`: student first, [..., V] of one shape, any float dtype, taken at temperature 1.
- The result is the acceptance [...] in float32, from 0 (rejected) to 1 (accepted); between them it is a probability, to
  be compared with a uniform draw (`token_weights`).
- Logits that hold NaN or +inf are no distribution, and the acceptance is NaN then: a mean over it shows, and no draw
  accepts it. A verifier looks at what it reads: `accept_all` and `random_gate` at neither model, `entropy_gate` at the
  one whose entropy it takes, `label_in_top_k` at the teacher. A model that excludes every token is accepted by none.
- Nothing is differentiated: verifiers are constants to a gradient.
- InputError (a ValueError) where shapes differ or an option is out of range; TypeError where logits are not floating.

A scorer (`excess_loss` and its like) has the same arguments and no bounds; `top_fraction` turns scores into acceptance.
A score of NaN ranks behind all others.
"""

from selecttkd_jax.selection._budget import SCORES, Budget, SelectionConfig
from selecttkd_jax.selection._controls import at_rate_of, entropy_gate, invert, label_in_top_k, random_gate
from selecttkd_jax.selection._ranking import at_most, median_split, top_fraction
from selecttkd_jax.selection._rates import (
    Rate,
    acceptance_rate,
    acceptance_rate_by_position,
    acceptance_rate_by_sequence,
    is_stop_token,
    overlap,
    rejected_weight_share,
    shadow_overlaps,
)
from selecttkd_jax.selection._scores import (
    divergence_gap,
    entropy_gap,
    error_norm,
    excess_loss,
    label_uncertainty,
    random_scores,
    student_entropy,
    target_uncertainty,
    teacher_entropy,
)
from selecttkd_jax.selection._verifiers import (
    accept_all,
    greedy_top_k,
    hellinger,
    hellinger_gate,
    nucleus,
    spec_k,
    spec_k_by_sampling,
    spec_label,
)
from selecttkd_jax.selection._weights import TokenWeights, token_weights

__all__ = [
    "SCORES",
    "Budget",
    "Rate",
    "SelectionConfig",
    "TokenWeights",
    "accept_all",
    "acceptance_rate",
    "acceptance_rate_by_position",
    "acceptance_rate_by_sequence",
    "at_most",
    "at_rate_of",
    "divergence_gap",
    "entropy_gap",
    "entropy_gate",
    "error_norm",
    "excess_loss",
    "greedy_top_k",
    "hellinger",
    "hellinger_gate",
    "invert",
    "is_stop_token",
    "label_in_top_k",
    "label_uncertainty",
    "median_split",
    "nucleus",
    "overlap",
    "random_gate",
    "random_scores",
    "rejected_weight_share",
    "shadow_overlaps",
    "spec_k",
    "spec_k_by_sampling",
    "spec_label",
    "student_entropy",
    "target_uncertainty",
    "teacher_entropy",
    "token_weights",
    "top_fraction",
]
