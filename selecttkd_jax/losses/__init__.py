"""Divergences between a student's and a teacher's next-token distributions.

Pure functions of logits: [..., V] in, [...] float32 out, no mask, no batch, no mean. Student first, teacher second,
always; p is the teacher, q the student.
"""

from selecttkd_jax.losses.adaptive import adaptive_kl
from selecttkd_jax.losses.closed_form import divergence_from_kernel
from selecttkd_jax.losses.cross_entropy import cross_entropy, entropy, soft_cross_entropy
from selecttkd_jax.losses.distances import hellinger, total_variation
from selecttkd_jax.losses.jensen_shannon import jensen_shannon
from selecttkd_jax.losses.kullback_leibler import forward_kl, reverse_kl
from selecttkd_jax.losses.skew import skew_kl, skew_reverse_kl
from selecttkd_jax.losses.target import decoupled_kl, non_target_kl, target_kl
