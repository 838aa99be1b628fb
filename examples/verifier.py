"""A verifier of your own: a function of both models' logits, given to an objective; nothing needs registering.

Command:   python examples/verifier.py        (after `pip install .`)
Shows:     what `likely_enough` accepts beside greedy top-5, as the student's error grows.
"""

from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax import distill, losses, selection


def likely_enough(student_logits, teacher_logits, *, share):
    """Accepts the student's first choice where the teacher finds it nearly as likely as its own.

        acceptance = [p(argmax q) >= share max p]

    Top-k counts tokens: where the teacher is sure, its fifth is a wrong one; where it is not, its sixth is as good as
    its first. This compares probabilities instead.

    Args:
        student_logits: [..., V], in any float dtype.
        teacher_logits: [..., V].
        share: In (0, 1]; 1 accepts the teacher's own first choice alone.

    Returns:
        [...] float32, 0 or 1. A value between is a probability, to be compared with a uniform draw.
    """
    proposal = jnp.argmax(student_logits, axis=-1, keepdims=True)
    found = jnp.take_along_axis(teacher_logits, proposal, axis=-1)[..., 0].astype(jnp.float32)
    # p(y) / max p = exp(z_y - max z): no softmax over the vocabulary.
    ratio = jnp.exp(found - jnp.max(teacher_logits, axis=-1).astype(jnp.float32))
    return (ratio >= share).astype(jnp.float32)


VERIFIERS = {
    "greedy_top_k": partial(selection.greedy_top_k, k=5),
    "likely_enough": partial(likely_enough, share=0.2),
}

teacher = 3 * jax.random.normal(jax.random.key(0), (4, 64, 1000))
noise = jax.random.normal(jax.random.key(1), teacher.shape)
mask = jnp.ones(teacher.shape[:2], bool)
for error in (0.5, 1.0, 2.0, 4.0):
    for name, verifier in VERIFIERS.items():
        objective = distill.Objective(divergence=losses.forward_kl, verifier=verifier, floor=0.01)
        sums = jax.jit(objective)(teacher + error * noise, teacher, mask, None)
        print(f"error {error}   {name:13}   TAR {sums.accepted / sums.tokens:.3f}   loss {sums.mean:.3f}")
