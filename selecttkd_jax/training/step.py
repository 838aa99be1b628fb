"""One optimizer step: a pure, jitted function of (state, teacher parameters, batch)."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import optax

from selecttkd_jax.array_types import Array, Params
from selecttkd_jax.checks import InputError
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import LossSums, Objective, fused_head
from selecttkd_jax.models import Pair
from selecttkd_jax.sharding import divided_by_rows
from selecttkd_jax.training.state import TrainState, stream_key

StepMetrics = dict[str, Array | LossSums]
TrainStep = Callable[..., tuple[TrainState, StepMetrics]]
Frozen = tuple[Params, Params | None]  # the teacher, and what the student's adapters adapt


def make_train_step(
    pair: Pair,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    expected: bool = False,
    memory_budget: int | None = None,
    skip_rejected: bool = False,
    shardings: TrainState | None = None,
) -> TrainStep:
    """Builds the training step. Logits exist for a chunk of positions at a time (`distill.fused_head`).

    The gradient is that of `sum(loss) / sum(count)` over the whole batch: micro-batches are summed first and divided
    once, so one batch of 8 and 8 micro-batches of 1 take the same step.

    Args:
        pair: Architectures, shared vocabulary and compute dtype.
        objective: Divergence, verifier, floor, temperature and normaliser.
        optimizer: A gradient transformation over the float32 master weights or adapters.
        micro_batches: Into how many parts the batch is cut to save memory; it has to divide the batch.
        expected: Weighs by the verifier's acceptance itself instead of a draw against it.
        memory_budget: Bytes for a chunk's logits and their gradient; None leaves the choice to `fused_head`.
        skip_rejected: Whether rejected positions stay out of the head's gradient products; for a floor of 0.
        shardings: Where the state lies on a mesh (`state_shardings`); the new state and the gradients lie there, too.

    Returns:
        `step(state, teacher_params, batch, base_params=None) -> (state, metrics)`, jitted. It donates `state`, never
        the teacher. With `base_params`, which stay as they are too, the state holds adapters of them (`pair.lora`).
        `metrics` holds `sums` (the objective's LossSums) and `grad_norm` (before clipping).

    Raises:
        InputError: At trace time, when `micro_batches` does not divide the batch.
    """

    def micro_sums(params: Params, frozen: Frozen, batch: Batch, uniforms: Array | None) -> tuple[Array, LossSums]:
        teacher_params, base_params = frozen
        head = partial(
            fused_head,
            objective,
            uniforms=uniforms,
            labels=batch.labels,
            memory_budget=memory_budget,
            skip_rejected=skip_rejected,
        )
        sums = pair.fused(head, pair.student_params(params, base_params), teacher_params, batch)
        return sums.loss, sums

    def micro_grads(params: Params, frozen: Frozen, batch: Batch, uniforms: Array | None) -> tuple[Params, LossSums]:
        grads, sums = jax.grad(micro_sums, has_aux=True)(params, frozen, batch, uniforms)
        # Summed over devices straight to where the parameters lie, before anything is added up.
        return (grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings.params)), sums

    def batch_grads(params: Params, frozen: Frozen, batch: Batch, uniforms: Array | None) -> tuple[Params, LossSums]:
        if micro_batches == 1:
            return micro_grads(params, frozen, batch, uniforms)

        def add(
            carry: tuple[Params, LossSums], part: tuple[Batch, Array | None]
        ) -> tuple[tuple[Params, LossSums], None]:
            return jax.tree.map(jnp.add, carry, micro_grads(params, frozen, *part)), None

        def cut(leaf: Array) -> Array:
            # Every micro-batch takes rows of every device's: part i has rows i, i + micro_batches, ...
            rows = leaf.reshape(leaf.shape[0] // micro_batches, micro_batches, *leaf.shape[1:])
            return divided_by_rows(jnp.swapaxes(rows, 0, 1), axis=1)

        parts = jax.tree.map(cut, (batch, uniforms))
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes = jax.eval_shape(micro_grads, params, frozen, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return total

    def step(
        state: TrainState, teacher_params: Params, batch: Batch, base_params: Params | None = None
    ) -> tuple[TrainState, StepMetrics]:
        rows = batch.input_ids.shape[0]
        if rows % micro_batches:
            raise InputError(f"a batch of {rows} rows cannot be cut into {micro_batches} equal micro-batches")
        # Drawn once for the whole batch: the same key gives the same mask however the batch is cut.
        key = stream_key(state.key, "verification", state.step)
        uniforms = None if expected else divided_by_rows(jax.random.uniform(key, batch.loss_mask.shape))
        grads, sums = batch_grads(state.params, (teacher_params, base_params), batch, uniforms)
        scale = 1.0 / jnp.where(sums.count > 0, sums.count, 1.0)
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        metrics: StepMetrics = {"sums": sums, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))
