"""Divergences between a student's and a teacher's next-token distributions.

Pure functions of logits: [..., V] in, [...] float32 out, no mask, no batch, no mean. Student first, teacher second,
always; p is the teacher, q the student.
"""

from selecttkd_jax.losses.cross_entropy import cross_entropy
from selecttkd_jax.losses.kullback_leibler import forward_kl, reverse_kl
from selecttkd_jax.losses.skew import skew_kl, skew_reverse_kl
