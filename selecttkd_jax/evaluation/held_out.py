"""Held-out KL at temperature 1, cross-entropy, agreement and acceptance rates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax import losses, selection
from selecttkd_jax.array_types import Array, Params
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import map_logits
from selecttkd_jax.models import Pair

Verifier = Callable[[Array, Array], Array]


def held_out_verifiers(k: int = 5) -> dict[str, Verifier]:
    """The verifiers whose acceptance rate is reported: greedy top-k and Spec-k in expectation."""
    return {
        f"tar_greedy_top_{k}": partial(selection.greedy_top_k, k=k),
        f"tar_spec_{k}": partial(selection.spec_k, k=k),
    }


class HeldOut:
    """Evaluates a student against its teacher on fixed batches.

    Every number is a mean over all response tokens of the rows, so it does not depend on the batch size:

    - `kl`: KL(teacher || student) at temperature 1, nats;
    - `cross_entropy`: of the student on the labels, nats;
    - `teacher_cross_entropy`: of the teacher on the same labels, nats;
    - `top1_agreement`: share of tokens whose argmax is the teacher's;
    - one `tar_...` a verifier: its mean acceptance.

    Args:
        pair: Architectures, shared vocabulary and compute dtype.
        batches: Held-out batches in order.
        verifiers: Name -> verifier.
        place: Puts a batch on the mesh (`sharding.place_batch`), where there is one.
    """

    def __init__(
        self,
        pair: Pair,
        batches: Sequence[Batch],
        verifiers: Mapping[str, Verifier],
        place: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        self._batches = list(batches)
        self._place = place

        def sums(student_params: Params, teacher_params: Params, batch: Batch) -> dict[str, Array]:
            def measure(zq: Array, zp: Array, labels: Array) -> dict[str, Array]:
                agree = jnp.argmax(zq, axis=-1) == jnp.argmax(zp, axis=-1)
                return {
                    "kl": losses.forward_kl(zq, zp),
                    "cross_entropy": losses.cross_entropy(zq, labels),
                    "teacher_cross_entropy": losses.cross_entropy(zp, labels),
                    "top1_agreement": agree.astype(jnp.float32),
                    **{name: verifier(zq, zp) for name, verifier in verifiers.items()},
                    "tokens": jnp.ones(labels.shape, jnp.float32),
                }

            head = partial(map_logits, measure, labels=batch.labels)
            return jax.tree.map(jnp.sum, pair.fused(head, student_params, teacher_params, batch))

        self._sums = jax.jit(sums)

    def __call__(
        self, student_params: Params, teacher_params: Params, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Evaluates; `progress(done, total)` is called after each batch."""
        totals: dict[str, float] = {}
        for index, batch in enumerate(self._batches):
            sums = jax.device_get(self._sums(student_params, teacher_params, self._place(batch)))
            totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
            if progress is not None:
                progress(index + 1, len(self._batches))
        tokens = totals.pop("tokens")
        return {name: total / tokens for name, total in totals.items()} | {"tokens": tokens}
