"""One optimizer step: a pure, jitted function of (state, frozen parameters, batch)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp
import optax

from selecttkd_jax._array_types import Array, Params, Scalar
from selecttkd_jax._errors import InputError
from selecttkd_jax.sharding import shard_rows
from selecttkd_jax.training._pair import Frozen
from selecttkd_jax.training._protocols import Batch, Loss, Sums, Surveyor
from selecttkd_jax.training._state import TrainState, stream_key


class StepMetrics(TypedDict):
    """What a step says of itself.

    Attributes:
        sums: The loss's, over the whole batch.
        grad_norm: Of the gradient before clipping.
        applied: Whether loss and gradient were finite; else nothing was learnt.
    """

    sums: Sums
    grad_norm: Array
    applied: Array


TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, StepMetrics]]
"""`step(state, frozen, batch) -> (state, metrics)`: see `make_train_step`."""


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    shardings: TrainState | None = None,
    compiler_options: Mapping[str, str | bool] | None = None,
) -> TrainStep:
    """Builds the training step of any loss.

    The gradient is that of `sum(loss) / sum(count)` over the whole batch: micro-batches are summed first and divided
    once, so one batch of 8 and 8 micro-batches of 1 take the same step.

    Where the loss or the gradient's norm is not finite, parameters and moments stay as they are. The step counts for
    the data, the draws and the schedule of the learning rate, but not for Adam's bias correction, as it is with
    PyTorch's GradScaler.

    Args:
        loss: What is minimised.
        optimizer: A gradient transformation over the float32 master weights or adapters.
        micro_batches: Into how many parts the batch is cut to save memory; it has to divide the batch.
        shardings: Those of the state (`state_shardings`), for the new state and the gradients, too.
        compiler_options: Options of XLA for this program.

    Returns:
        `step(state, frozen, batch) -> (state, metrics)`, jitted. It donates `state` and nothing else. `metrics` holds
        `sums` (the loss's Sums over the whole batch), `grad_norm` (before clipping) and `applied`.

    Raises:
        InputError: At trace time, when `micro_batches` does not divide the batch.
    """

    # Inside out: `step` draws for the whole batch and divides once; `batch_grads` cuts it and scans; `micro_grads`
    # takes the gradient of one part. `batch_survey` looks at the parts before any is learned from.
    def cut(leaf: Array) -> Array:
        # Every micro-batch takes rows of every device's: part i has rows i, i + micro_batches, ...
        rows = leaf.reshape(leaf.shape[0] // micro_batches, micro_batches, *leaf.shape[1:])
        return shard_rows(jnp.swapaxes(rows, 0, 1), axis=1)

    def batch_survey(surveyor: Surveyor, params: Params, frozen: Frozen, step: Scalar, batch: Batch) -> Any:
        if micro_batches == 1:
            return surveyor.survey(params, frozen, batch, step)
        parts = jax.lax.map(lambda part: surveyor.survey(params, frozen, part, step), jax.tree.map(cut, batch))
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), parts)

    def micro_grads(params: Params, frozen: Frozen, step: Scalar, batch: Batch, draws: Any) -> tuple[Params, Sums]:
        def numerator(params: Params) -> tuple[Array, Sums]:
            sums = loss(params, frozen, batch, draws, step)
            return sums.loss, sums

        grads, sums = jax.grad(numerator, has_aux=True)(params)
        # Summed over devices straight into the parameters' own shardings, before anything is added up.
        return (grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings.params)), sums

    def batch_grads(params: Params, frozen: Frozen, step: Scalar, batch: Batch, draws: Any) -> tuple[Params, Sums]:
        if micro_batches == 1:
            return micro_grads(params, frozen, step, batch, draws)

        def add(carry: tuple[Params, Sums], part: tuple[Batch, Any]) -> tuple[tuple[Params, Sums], None]:
            return jax.tree.map(jnp.add, carry, micro_grads(params, frozen, step, *part)), None

        parts = jax.tree.map(cut, (batch, draws))
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes = jax.eval_shape(micro_grads, params, frozen, step, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return total

    def learn(grads: Params, params: Params, opt_state: Any) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return cast(Params, optax.apply_updates(params, updates)), opt_state

    def pass_over(grads: Params, params: Params, opt_state: Any) -> tuple[Params, Any]:
        return params, _advance_schedule(opt_state)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, StepMetrics]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        if rows % micro_batches:
            raise InputError(f"a batch of {rows} rows cannot be cut into {micro_batches} equal micro-batches")
        draws = loss.draw(stream_key(state.key, "verification", state.step), batch)
        if isinstance(loss, Surveyor):
            with jax.named_scope("survey"):
                found = batch_survey(loss, state.params, frozen, state.step, batch)
                draws = loss.decide(found, batch, draws, state.step)
        draws = jax.tree.map(shard_rows, draws)
        grads, sums = batch_grads(state.params, frozen, state.step, batch, draws)
        with jax.named_scope("optimizer"):
            scale = 1.0 / jnp.where(sums.count > 0, sums.count, 1.0)
            grads = jax.tree.map(lambda grad: grad * scale, grads)
            grad_norm = optax.tree.norm(grads)
            applied = jnp.isfinite(sums.loss * scale) & jnp.isfinite(grad_norm)
            params, opt_state = _choose(applied, learn, pass_over, grads, state.params, state.opt_state)
            metrics = StepMetrics(sums=sums, grad_norm=grad_norm, applied=applied)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=None if shardings is None else (shardings, None),
        compiler_options=dict(compiler_options or {}),
    )


def _choose(applied: Array, learn: Callable[..., Any], pass_over: Callable[..., Any], *operands: Any) -> Any:
    """`learn(*operands)` if the update counts, else `pass_over(*operands)`.

    By a branch on a CPU, where a choice between values would copy the old ones (8 % more bytes in a small step). By
    values elsewhere, where fused loops make it in passing, and where a GPU's host would have to wait for a branch.
    """

    def by_branch(applied: Array, *operands: Any) -> Any:
        return jax.lax.cond(applied, learn, pass_over, *operands)

    def by_values(applied: Array, *operands: Any) -> Any:
        return jax.tree.map(partial(jnp.where, applied), learn(*operands), pass_over(*operands))

    return jax.lax.platform_dependent(applied, *operands, cpu=by_branch, default=by_values)


def _advance_schedule(opt_state: Any) -> Any:
    """The optimizer's state with one more step of its schedule, and nothing else."""

    def advance(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=optax.safe_increment(node.count))
        return node

    return jax.tree.map(advance, opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
