"""The functions in a loop of your own: no configuration, no files, nothing but JAX.

Command:   python examples/loop.py        (after `pip install .`)
Shows:     a student of a quarter of its teacher's width learns: the divergence falls, acceptance rises. The loss counts
           what is accepted in full, so it may rise while both get better.
"""

from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax import distill, losses, selection

VOCABULARY, STEPS, RATE = 256, 200, 100.0


def init_model(key, width):
    """A model of next tokens that looks at one token: an embedding and a head."""
    shapes = {"embedding": (VOCABULARY, width), "head": (width, VOCABULARY)}
    keys = jax.random.split(key, 2)
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


OBJECTIVE = distill.Objective(
    divergence=partial(losses.skew_kl, alpha=0.1),
    verifier=partial(selection.greedy_top_k, k=5),
    floor=0.1,
)


def mean_loss(student, teacher, ids, mask):
    """From hidden states to the mean over the batch; logits exist for a chunk of positions at a time."""
    sums = distill.fused_head(
        OBJECTIVE,
        student["embedding"][ids],  # [B, T, D]: your model's last hidden states
        distill.Head(student["head"]),
        teacher["embedding"][ids],
        distill.Head(teacher["head"]),
        distill.Tokens(mask),
    )
    return sums.mean, sums


@jax.jit
def step(student, teacher, ids, mask):
    """A step of gradient descent; an optimizer of optax goes here as well."""
    (loss, sums), grads = jax.value_and_grad(mean_loss, has_aux=True)(student, teacher, ids, mask)
    student = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, student, grads)
    return student, (loss, sums.divergence / sums.tokens, sums.accepted / sums.tokens)


teacher, student = init_model(jax.random.key(0), 32), init_model(jax.random.key(1), 8)
for number in range(STEPS + 1):
    ids = jax.random.randint(jax.random.fold_in(jax.random.key(2), number), (8, 32), 0, VOCABULARY)
    mask = jnp.arange(32) >= 8  # the first eight tokens of a row are its prompt
    student, (loss, divergence, tar) = step(student, teacher, ids, jnp.broadcast_to(mask, ids.shape))
    if number % 50 == 0:
        print(f"step {number:3}   loss {loss:.3f}   divergence {divergence:.3f}   TAR {tar:.3f}")
