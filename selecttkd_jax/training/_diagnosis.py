"""Whose logits are broken, once a number came out that is not finite."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Params
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import map_logits
from selecttkd_jax.training._pair import Frozen, Pair


def find_broken_logits(pair: Pair, trained: Params | None, frozen: Frozen, batch: Batch) -> str:
    """Names the model whose logits are not finite on a batch, the teacher first; empty where all are finite.

    Args:
        pair: Both architectures.
        trained: What is trained; None where it is not at hand, and only the teacher is asked.
        frozen: The teacher, and what `trained` are adapters of.
        batch: Rows `[B, T]`, placed.

    Returns:
        Such as `the teacher's logits are not finite at 12 of 40 tokens`.
    """
    suspects: dict[str, Callable[[], tuple[Array, Array]]] = {}
    if pair.teacher is not None and frozen.teacher is not None:
        alone = replace(pair, student=pair.teacher, teacher=None, remat="kept", lora=None)
        suspects["teacher"] = partial(_count_broken, alone, frozen.teacher, None, batch)
    if trained is not None:
        suspects["student"] = partial(_count_broken, replace(pair, teacher=None), trained, frozen.base, batch)
    for role, count in suspects.items():
        broken, tokens = (int(number) for number in jax.device_get(count()))
        if broken:
            hint = "; float16 overflows where bfloat16 does not" if pair.dtype == "float16" else ""
            return f"the {role}'s logits are not finite at {broken} of {tokens} tokens{hint}"
    return ""


@partial(jax.jit, static_argnums=0)
def _count_broken(pair: Pair, trained: Params, base: Params | None, batch: Batch) -> tuple[Array, Array]:
    """At how many response tokens the logits of a pair without a teacher are broken, and how many there are."""

    def is_broken(logits: Array, _: None, labels: Array) -> tuple[Array, Array]:
        # A logit of -inf is a token that is left out; NaN, +inf, or nothing but -inf, breaks the position.
        broken = ~jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))
        return broken.astype(jnp.int32), jnp.ones(labels.shape, jnp.int32)

    params = pair.student_params(trained, base)
    hidden, _ = pair.hidden(params, None, batch)
    head, _ = pair.heads(params, None)
    counts = map_logits(
        is_broken, hidden, head, None, None, batch.loss_mask, vocab_size=pair.vocab_size, labels=batch.labels
    )
    return jax.tree.map(jnp.sum, counts)
