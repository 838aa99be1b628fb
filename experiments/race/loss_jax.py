"""Our contenders of the loss race: the fused head, and the bare matrix products in JAX.

python loss_jax.py TENSORS ours|products|baseline [--chunk-size POSITIONS]
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tensors
from channel import Channel, serve

from selecttkd_jax import distill, losses, selection
from selecttkd_jax.compilation import compile_ahead

OBJECTIVE = distill.Objective(
    divergence=losses.reverse_kl,
    verifier=partial(selection.greedy_top_k, k=5),
    floor=0.01,
    normalizer="token",
)
# The tensors are laid out as Hugging Face stores them, [V, D], as a tied embedding table does here.
VOCAB_FIRST = (True, True)


def main():
    """Loads, compiles, then serves one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tensors", type=Path)
    parser.add_argument("contender", choices=["ours", "products", "baseline"])
    parser.add_argument("--chunk-size", type=int)
    options = parser.parse_args()
    channel = Channel()
    inputs = jax.block_until_ready(tensors.load(options.tensors, jax.device_put))
    facts = {"versions": f"jax {jax.__version__}"}
    if options.contender == "baseline":
        gradient = jax.block_until_ready(jnp.ones_like(inputs["student_head"]))
        channel.ready(**facts, kept=gradient.size)
        channel.next_turn()
        return
    chunk_size = "auto" if options.chunk_size is None else options.chunk_size
    function = partial(ours, chunk_size=chunk_size) if options.contender == "ours" else products
    compiled = compile_ahead(jax.jit(function), **inputs)
    memory = compiled.memory_analysis()
    channel.ready(**facts, compiled_temp_mib=memory.temp_size_in_bytes / 2**20)

    def work():
        numbers, arrays = jax.block_until_ready(compiled(**inputs))
        return {name: float(value) for name, value in numbers.items()}, arrays

    serve(channel, work)


def ours(student_hidden, student_head, teacher_hidden, teacher_head, mask, *, chunk_size):
    """Loss, verification and both gradients."""

    def loss(hidden, head):
        sums = distill.fused_head(
            OBJECTIVE,
            hidden,
            distill.Head(head, vocab_first=VOCAB_FIRST[0]),
            teacher_hidden,
            distill.Head(teacher_head, vocab_first=VOCAB_FIRST[1]),
            distill.Tokens(mask),
            chunk_size=chunk_size,
        )
        return sums.loss / sums.count, sums.accepted

    value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, accepted), (hidden_gradient, head_gradient) = value_and_grad(student_hidden, student_head)
    numbers = {"loss": value, "accepted": accepted}
    return numbers, {"hidden_gradient": hidden_gradient, "head_gradient": head_gradient}


def products(student_hidden, student_head, teacher_hidden, teacher_head, mask):
    """The four matrix products nobody avoids, and nothing else."""
    del mask
    student_hidden, teacher_hidden = (x.reshape(-1, x.shape[-1]) for x in (student_hidden, teacher_hidden))
    teacher_logits = teacher_hidden @ teacher_head.T
    student_logits = student_hidden @ student_head.T  # stands for its own gradient, too
    return {}, {"products": (teacher_logits, student_logits @ student_head, student_logits.T @ student_hidden)}


if __name__ == "__main__":
    main()
