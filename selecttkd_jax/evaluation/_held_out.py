"""Held-out KL at temperature 1, cross-entropy, agreement and acceptance rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax import losses, selection
from selecttkd_jax._array_types import Array, Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import map_logits
from selecttkd_jax.training import Frozen, Pair, find_broken_logits

Verifier = Callable[[Array, Array], Array]
HeldOutProgram = Callable[[Params, Frozen, Batch], dict[str, Array]]
"""Sums over the response tokens of a batch, jitted."""


def held_out_verifiers(k: int = 5) -> dict[str, Verifier]:
    """The verifiers whose acceptance rate is reported: greedy top-k and Spec-k in expectation."""
    return {
        f"tar_greedy_top_{k}": partial(selection.greedy_top_k, k=k),
        f"tar_spec_{k}": partial(selection.spec_k, k=k),
    }


class HeldOut:
    """Evaluates a student, against its teacher where there is one, on fixed batches.

    Every number is a mean over all response tokens of the rows, so it does not depend on the batch size:

    - `kl`: KL(teacher || student) at temperature 1, nats;
    - `cross_entropy`: of the student on the labels, nats;
    - `teacher_cross_entropy`: of the teacher on the same labels, nats;
    - `top1_agreement`: share of tokens whose argmax is the teacher's;
    - one `tar_...` a verifier: its mean acceptance.

    Without a teacher only `cross_entropy` is left. Numbers that are not finite are refused, naming the batch and
    the model that they come from.

    Args:
        pair: Architectures, shared vocabulary and compute dtype.
        frozen: The teacher's parameters, and what the evaluated ones are adapters of.
        batches: Held-out batches in order.
        verifiers: Name -> verifier.
        every: Steps of training between two evaluations.
        memory_budget: Bytes for the logits that exist at once; None leaves the choice to `distill.map_logits`.
        place: Puts a batch on the mesh (`sharding.place_batch`), where there is one.

    Attributes:
        program: What is run on each batch.
    """

    name = "held_out"
    repeatable = True

    def __init__(
        self,
        pair: Pair,
        frozen: Frozen,
        batches: Sequence[Batch],
        verifiers: Mapping[str, Verifier],
        *,
        every: int = 1,
        memory_budget: int | None = None,
        place: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        self.every = every
        self._pair = pair
        self._frozen = frozen
        self._batches = list(batches)
        self._place = place

        def sums(params: Params, frozen: Frozen, batch: Batch) -> dict[str, Array]:
            student_params = pair.student_params(params, frozen.base)
            student_hidden, teacher_hidden = pair.hidden(student_params, frozen.teacher, batch)
            student_head, teacher_head = pair.heads(student_params, frozen.teacher)
            results = map_logits(
                partial(_measures, verifiers),
                student_hidden,
                student_head,
                teacher_hidden,
                teacher_head,
                batch.loss_mask,
                vocab_size=pair.vocab_size,
                memory_budget=memory_budget,
                labels=batch.labels,
            )
            return jax.tree.map(jnp.sum, results)

        self.program: HeldOutProgram = jax.jit(sums)

    def __call__(self, params: Params, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Evaluates what is trained; `progress(done, total)` is called after each batch."""
        totals: dict[str, float] = {}
        for index, batch in enumerate(self._batches):
            batch = self._place(batch)
            sums = jax.device_get(self.program(params, self._frozen, batch))
            if broken := [name for name, value in sums.items() if not math.isfinite(value)]:
                cause = find_broken_logits(self._pair, params, self._frozen, batch) or "though all logits are finite"
                place = f"held-out batch {index + 1} of {len(self._batches)}"
                raise InputError(f"{place}: {broken[0]} is {float(sums[broken[0]])}: {cause}")
            totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
            if progress is not None:
                progress(index + 1, len(self._batches))
        tokens = totals.pop("tokens")
        return {name: total / tokens for name, total in totals.items()} | {"tokens": tokens}


def _measures(
    verifiers: Mapping[str, Verifier], student_logits: Array, teacher_logits: Array | None, labels: Array
) -> dict[str, Array]:
    """The numbers of each position, from logits `[R, V]` and labels `[R]`."""
    own = {"cross_entropy": losses.cross_entropy(student_logits, labels), "tokens": jnp.ones(labels.shape, jnp.float32)}
    if teacher_logits is None:
        return own
    agree = jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
    return {
        "kl": losses.forward_kl(student_logits, teacher_logits),
        "cross_entropy": own["cross_entropy"],
        "teacher_cross_entropy": losses.cross_entropy(teacher_logits, labels),
        "top1_agreement": agree.astype(jnp.float32),
        **{name: verifier(student_logits, teacher_logits) for name, verifier in verifiers.items()},
        "tokens": own["tokens"],
    }
