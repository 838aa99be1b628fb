"""Divergences between a student's and a teacher's next-token distributions.

Pure functions of logits that know no mask, batch or mean. What holds for every `f(student_logits, teacher_logits,
**options)` here is said once:

- Student first, teacher second, always; p = softmax(teacher_logits), q = softmax(student_logits).
- Both are [..., V] of one shape and any float dtype; log-probabilities are valid logits, and -inf excludes a token. The
  result is [...], computed and returned in float32 (float64 for float64 logits).
- The teacher is a constant, whose gradient is exactly zero.
- InputError (a ValueError) where shapes differ or an option is out of range; TypeError where logits are not floating.
"""

from selecttkd_jax.losses._adaptive import adaptive_kl
from selecttkd_jax.losses._closed_form import divergence_from_kernel
from selecttkd_jax.losses._cross_entropy import cross_entropy, entropy, hard_cross_entropy, soft_cross_entropy
from selecttkd_jax.losses._distances import hellinger, total_variation
from selecttkd_jax.losses._jensen_shannon import jensen_shannon
from selecttkd_jax.losses._kullback_leibler import forward_kl, reverse_kl
from selecttkd_jax.losses._skew import skew_kl, skew_reverse_kl
from selecttkd_jax.losses._sum import sum_of
from selecttkd_jax.losses._target import decoupled_kl, non_target_kl, target_kl
from selecttkd_jax.losses._top_k import teacher_top_k_kl, teacher_top_k_reverse_kl

__all__ = [
    "adaptive_kl",
    "cross_entropy",
    "decoupled_kl",
    "divergence_from_kernel",
    "entropy",
    "forward_kl",
    "hard_cross_entropy",
    "hellinger",
    "jensen_shannon",
    "non_target_kl",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "sum_of",
    "target_kl",
    "teacher_top_k_kl",
    "teacher_top_k_reverse_kl",
    "total_variation",
]
