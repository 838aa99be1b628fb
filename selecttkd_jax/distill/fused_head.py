"""The objective from hidden states: both head products, verification, divergence and gradients in one sweep.

With a vocabulary of 150,000 the logits, not the models, fill the memory: [B, T, V] in float32 is 5 GB for 8 sequences
of 1,024 tokens, and a plain objective holds several such arrays. Here a chunk of positions is taken from hidden states
to gradients before the next one starts. Positions are independent of each other, so the gradient to the hidden states
and the head is known in the forward sweep; the backward pass only scales it.

On a mesh (`jax.set_mesh`) whose axes are named `data`, `fsdp` and `tensor`, each device sweeps its own rows and the
head's gradient is summed over devices once, after the sweep. Over `tensor` the vocabulary is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax.array_types import Array, Head, HiddenStates, PerSequence, PerToken, Scalar, TokenIds, TokenMask
from selecttkd_jax.checks import InputError, as_mask, check_floating, check_rank, check_same_shape
from selecttkd_jax.distill.head_products import HeadInputs
from selecttkd_jax.distill.objective import Objective, check_alpha
from selecttkd_jax.distill.placed_sweep import Placement, choose_placement, cut_to_equal_widths, placed_sweep
from selecttkd_jax.distill.sums import LossSums, TokenTerms, reduce_terms, token_coefficients
from selecttkd_jax.distill.vocabulary import match_vocabulary


def fused_head(
    objective: Objective,
    student_hidden: HiddenStates,
    student_head: Head,
    teacher_hidden: HiddenStates,
    teacher_head: Head,
    mask: TokenMask,
    uniforms: PerToken | None = None,
    labels: TokenIds | None = None,
    *,
    alpha: PerSequence | None = None,
    acceptance: PerToken | None = None,
    student_bias: Array | None = None,
    teacher_bias: Array | None = None,
    vocab_size: int | None = None,
    vocab_first: tuple[bool, bool] = (False, False),
    chunk_size: int | str = "auto",
    memory_budget: int | None = None,
    skip_rejected: bool = False,
) -> LossSums:
    """What `objective(student_logits, teacher_logits, mask, uniforms, labels)` returns, without the logits.

        student_logits = student_hidden @ student_head + student_bias,   teacher_logits likewise

    Same sums and gradients up to the order of additions, and the same acceptance for every `chunk_size`. Work is done
    for the positions of `mask` alone. Operands of the products have the dtype of the hidden states; logits, statistics
    and accumulated gradients are float32.

    Args:
      objective: What to sum. Its own `chunk_size` is not used here.
      student_hidden: [B, T, Ds], after the final norm.
      student_head: [Ds, Vs].
      teacher_hidden: [B, T, Dt]. Treated as a constant, like everything of the teacher's.
      teacher_head: [Dt, Vt].
      mask: [B, T], boolean or 0/1: the positions that carry loss.
      uniforms: [B, T] draws from [0, 1), or None for the expectation over them.
      labels: [B, T] token ids, if the objective uses them.
      alpha: [B], a skew per sequence in place of the divergence's own.
      acceptance: [B, T] in [0, 1] in place of the verifier's: ranking selectors, after a sweep of `map_logits`.
      student_bias: [Vs] or None.
      teacher_bias: [Vt] or None.
      vocab_size: Number of real ids of the shared tokenizer. Both heads are cut to the narrower one, and columns from
        `vocab_size` on count for nothing. None: no padding, and the heads must be equally wide.
      vocab_first: Whether the student's and the teacher's head are given as [V, D]: tied embedding tables, which then
        need no transposed copy. The gradient has the layout of the head.
      chunk_size: Positions whose logits exist at once, or "auto": as many as `memory_budget` holds.
      memory_budget: Bytes for the logits and their gradient under "auto". None: 1 GiB, and 320 MiB on a CPU.
      skip_rejected: Whether rejected positions stay out of the two gradient products: for `floor=0`, where they have no
        gradient. Saves up to half of the sweep when few are accepted.

    Returns:
      LossSums, differentiable to `student_hidden`, `student_head` and `student_bias`.

    Raises:
      InputError: Shapes do not match, an option is out of range, or `skip_rejected` with a floor or a label term.
      TypeError: Hidden states or heads are not floating point, or `objective` is no Objective.

    Example:
      >>> student_hidden, teacher_hidden = jnp.ones((1, 3, 4)), jnp.ones((1, 3, 6))
      >>> heads = jnp.ones((4, 9)), jnp.ones((6, 9))
      >>> mask = jnp.ones((1, 3), bool)
      >>> sums = fused_head(Objective(), student_hidden, heads[0], teacher_hidden, heads[1], mask)
      >>> print(float(sums.tokens))
      3.0
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective (fused_two_stream takes two streams), got {objective!r}")
    if skip_rejected and (objective.floor > 0 or objective.label_share > 0):
        raise InputError(
            f"skip_rejected needs floor 0 and label_share 0, got {objective.floor} and {objective.label_share}: "
            "rejected positions have a gradient there"
        )
    student = HeadInputs(student_hidden, student_head, student_bias, vocab_first[0])
    teacher = jax.lax.stop_gradient(HeadInputs(teacher_hidden, teacher_head, teacher_bias, vocab_first[1]))
    mask = as_mask(mask)
    vocab_size = check_inputs(student, teacher, mask, vocab_size)
    student, teacher = cut_to_equal_widths(student, teacher)
    if alpha is not None:
        check_alpha(alpha, mask.shape[0])
        alpha = jnp.broadcast_to(alpha[:, None, None], (*mask.shape, 1))
    per_token: dict[str, Array | None] = {"uniforms": uniforms, "labels": labels, "acceptance": acceptance}
    for name, values in per_token.items():
        if values is not None:
            check_same_shape(name, values, "mask", mask)
    per_token |= {"alpha": alpha, "coefficient": token_coefficients(mask, objective.normalizer)}
    evaluate = _ObjectiveOnLogits(objective, vocab_size)
    placement = choose_placement(student, teacher, chunk_size, memory_budget, skip_weightless=skip_rejected)
    loss, terms = _loss_and_terms(evaluate, placement, student, (teacher, per_token, mask))  # pyright: ignore[reportGeneralTypeIssues]
    return replace(reduce_terms(terms, mask, objective.normalizer), loss=loss)


def map_logits(
    function: Callable[..., Any],
    student_hidden: HiddenStates,
    student_head: Head,
    teacher_hidden: HiddenStates,
    teacher_head: Head,
    mask: TokenMask,
    *,
    student_bias: Array | None = None,
    teacher_bias: Array | None = None,
    vocab_size: int | None = None,
    vocab_first: tuple[bool, bool] = (False, False),
    chunk_size: int | str = "auto",
    memory_budget: int | None = None,
    **per_token: Array,
) -> Any:
    """Applies a function of logits to every position of `mask`, without gradient and without [B, T, V].

    For ranking selectors, which need the scores of all positions before they choose any, and for evaluation.

    Args:
      function: `f(student_logits [R, V], teacher_logits [R, V], **per_token) -> pytree of [R]`.
      student_hidden: [B, T, Ds] and so on: see `fused_head`. "Student" and "teacher" may be any two models.
      student_head: [Ds, Vs].
      teacher_hidden: [B, T, Dt].
      teacher_head: [Dt, Vt].
      mask: [B, T], boolean or 0/1.
      student_bias: [Vs] or None.
      teacher_bias: [Vt] or None.
      vocab_size: See `fused_head`.
      vocab_first: See `fused_head`.
      chunk_size: See `fused_head`.
      memory_budget: See `fused_head`.
      **per_token: [B, T, ...] arrays by the name under which `function` takes them, such as labels.

    Returns:
      The function's pytree, of [B, T]; zeros outside the mask.

    Raises:
      InputError: Shapes do not match, or an option is out of range.
      TypeError: Hidden states or heads are not floating point.

    Example:
      RHO-1: the best fifth by excess loss carries the loss.

      >>> scores = map_logits(selection.excess_loss, *student, *reference, mask, labels=labels)  # doctest: +SKIP
      >>> kept = selection.top_fraction(scores, mask, 0.2)  # doctest: +SKIP
      >>> sums = fused_head(objective, *student, *teacher, mask, acceptance=kept)  # doctest: +SKIP
    """
    student = HeadInputs(student_hidden, student_head, student_bias, vocab_first[0])
    teacher = HeadInputs(teacher_hidden, teacher_head, teacher_bias, vocab_first[1])
    mask = as_mask(mask)
    vocab_size = check_inputs(student, teacher, mask, vocab_size)
    student, teacher = cut_to_equal_widths(student, teacher)
    for name, values in per_token.items():
        if jnp.shape(values)[:2] != mask.shape:
            raise InputError(f"{name} must have the shape of the mask, {mask.shape}, got {jnp.shape(values)}")

    def evaluate(student_logits, teacher_logits, per_token, live):
        del live
        result = function(*match_vocabulary(student_logits, teacher_logits, vocab_size), **per_token)
        return jnp.zeros((), jnp.float32), result

    placement = choose_placement(student, teacher, chunk_size, memory_budget)
    student, teacher, per_token = jax.lax.stop_gradient((student, teacher, per_token))
    _, results, _ = placed_sweep(evaluate, student, teacher, per_token, mask, placement, with_gradient=False)
    return results


@dataclass(frozen=True)
class _ObjectiveOnLogits:
    """The objective on some positions' logits, in the form a sweep takes; comparable by value, so it can be static."""

    objective: Objective
    vocab_size: int

    def __call__(self, student_logits: Array, teacher_logits: Array, per_token: Any, live: Array) -> Any:
        terms = self.objective.token_terms(
            *match_vocabulary(student_logits, teacher_logits, self.vocab_size),
            per_token["uniforms"],
            per_token["labels"],
            alpha=per_token["alpha"],
            acceptance=per_token["acceptance"],
        )
        coefficient = jnp.where(live, per_token["coefficient"], 0.0)
        return jnp.sum(jnp.where(coefficient > 0, coefficient * terms.loss, 0.0)), terms


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_and_terms(
    evaluate: _ObjectiveOnLogits, placement: Placement, student: HeadInputs, constants: Any
) -> tuple[Scalar, TokenTerms]:
    teacher, per_token, mask = constants
    loss, terms, _ = placed_sweep(evaluate, student, teacher, per_token, mask, placement, with_gradient=False)
    return loss, terms


def _forward(evaluate, placement, student, constants):
    teacher, per_token, mask = constants
    loss, terms, gradient = placed_sweep(evaluate, student, teacher, per_token, mask, placement, with_gradient=True)
    gradient = jax.tree.map(lambda slope, leaf: slope.astype(leaf.dtype), gradient, student)
    return (loss, terms), gradient


def _backward(evaluate, placement, gradient, cotangents):
    del evaluate, placement
    # The terms carry no gradient: what an objective differentiates is in its loss.
    slope = cotangents[0]

    def scaled(leaf: Array) -> Array:
        # No gradient stays none, also where the caller has divided by a count of 0.
        leaf = leaf.astype(slope.dtype)
        return jnp.where(leaf == 0, leaf, slope * leaf)

    return jax.tree.map(lambda leaf: scaled(leaf).astype(leaf.dtype), gradient), None


_loss_and_terms.defvjp(_forward, _backward)


def check_inputs(student: HeadInputs, teacher: HeadInputs, mask: Array, vocab_size: int | None) -> int:
    """Raises unless everything fits together; returns the number of ids that count."""
    for name, model in (("student", student), ("teacher", teacher)):
        check_floating(f"{name}_hidden", model.hidden)
        check_floating(f"{name}_head", model.matrix)
        check_rank(f"{name}_hidden", model.hidden, 3)
        check_rank(f"{name}_head", model.matrix, 2)
        if jnp.shape(model.hidden)[:2] != jnp.shape(mask):
            raise InputError(f"{name}_hidden {jnp.shape(model.hidden)} and mask {jnp.shape(mask)} differ in [B, T]")
        width = model.matrix.shape[1 if model.vocab_first else 0]
        if model.hidden.shape[2] != width:
            order = "[V, D]" if model.vocab_first else "[D, V]"
            raise InputError(
                f"{name}_head must be {order} with D = {model.hidden.shape[2]} as in {name}_hidden, got "
                f"{model.matrix.shape}"
            )
        if model.bias is not None and model.bias.shape != (model.vocab_size,):
            raise InputError(f"{name}_bias must have shape {(model.vocab_size,)}, got {model.bias.shape}")
    if vocab_size is None:
        if student.vocab_size != teacher.vocab_size:
            raise InputError(
                f"the heads have {student.vocab_size} and {teacher.vocab_size} columns; say how many ids the shared "
                "tokenizer has (vocab_size)"
            )
        return student.vocab_size
    if not 1 <= vocab_size <= min(student.vocab_size, teacher.vocab_size):
        raise InputError(
            f"vocab_size must be from 1 to the width of the narrower head, "
            f"{min(student.vocab_size, teacher.vocab_size)}, got {vocab_size}"
        )
    return vocab_size
