"""The objective from hidden states: both head products, verification, divergence and gradients in one sweep.

With a vocabulary of 150,000 the logits, not the models, fill the memory: [B, T, V] in float32 is 5 GB for 8 sequences
of 1,024 tokens, and a plain objective holds several such arrays. Here a chunk of positions is taken from hidden states
to gradients before the next one starts. Positions are independent of each other, so the gradient to the hidden states
and the head is known in the forward sweep; the backward pass only scales it.

On a mesh (`jax.set_mesh`) whose axes are named `data`, `fsdp` and `tensor`, each device sweeps its own rows and the
head's gradient is summed over devices once, after the sweep. Over `tensor` the vocabulary is sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, HiddenStates, Scalar, TokenMask
from selecttkd_jax._checks import as_mask, check_floating, check_rank, check_same_shape
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import any_mesh, vary_alike
from selecttkd_jax.distill._head_products import HeadInputs
from selecttkd_jax.distill._inputs import Head, Tokens, check_kind
from selecttkd_jax.distill._objective import Objective, check_segments, spread_alpha
from selecttkd_jax.distill._placed_sweep import Placement, choose_placement, cut_to_equal_widths, placed_sweep
from selecttkd_jax.distill._sums import LossSums, reduce_terms, token_coefficients
from selecttkd_jax.distill._sweep import Evaluate
from selecttkd_jax.distill._vocabulary import mask_vocabulary, match_vocabulary


@any_mesh()
def fused_head(
    objective: Objective,
    student_hidden: HiddenStates,
    student_head: Head,
    teacher_hidden: HiddenStates | None,
    teacher_head: Head | None,
    tokens: Tokens,
    *,
    vocab_size: int | None = None,
    chunk_size: int | str = "auto",
    memory_budget: int | None = None,
    skip_rejected: bool = False,
) -> LossSums:
    """What `objective(student_logits, teacher_logits, mask, uniforms, labels)` returns, without the logits.

        student_logits = student_hidden @ matrix + bias of the student's head,   teacher_logits likewise

    Same sums and gradients up to the order of additions, and the same acceptance for every `chunk_size`. Work is done
    for the positions of the mask alone. Operands of the products have the dtype of the hidden states; logits,
    statistics and accumulated gradients are float32.

    Args:
        objective: What to sum.
        student_hidden: [B, T, Ds], after the final norm.
        student_head: Of [Ds, Vs].
        teacher_hidden: [B, T, Dt]. Treated as a constant, like everything of the teacher's. None, with the head, for an
            objective that asks no teacher: `losses.cross_entropy` under `selection.accept_all`.
        teacher_head: Of [Dt, Vt].
        tokens: The mask, and what else is known of each position.
        vocab_size: Number of real ids of the shared tokenizer. Both heads are cut to the narrower one, and columns from
            `vocab_size` on count for nothing. None: no padding, and the heads must be equally wide.
        chunk_size: Positions whose logits exist at once, or "auto": as many as `memory_budget` holds.
        memory_budget: Bytes for the logits and their gradient under "auto". None: 1 GiB, and 320 MiB on a CPU.
        skip_rejected: Whether rejected positions stay out of the two gradient products: for `floor=0`, where they have
            no gradient. Saves up to half of the sweep when few are accepted.

    Returns:
        LossSums, differentiable to `student_hidden` and `student_head`.

    Raises:
        InputError: Shapes do not match, an option is out of range, `skip_rejected` with a floor or a label term, or the
            objective asks a teacher that is not there.
        TypeError: Hidden states or heads are not floating point, or an argument is not of its kind.

    Example:
        >>> student_hidden, teacher_hidden = jnp.ones((1, 3, 4)), jnp.ones((1, 3, 6))
        >>> student_head, teacher_head = Head(jnp.ones((4, 9))), Head(jnp.ones((6, 9)))
        >>> tokens = Tokens(mask=jnp.ones((1, 3), bool))
        >>> sums = fused_head(Objective(), student_hidden, student_head, teacher_hidden, teacher_head, tokens)
        >>> print(float(sums.tokens))
        3.0
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective (fused_two_stream takes two streams), got {objective!r}")
    check_kind("tokens", tokens, Tokens)
    if skip_rejected and tokens.floor is not None:
        raise InputError("skip_rejected needs a floor of 0, and the tokens have one of their own; leave one out")
    if skip_rejected and (objective.floor > 0 or objective.label_share > 0):
        raise InputError(
            f"skip_rejected needs floor 0 and label_share 0, got {objective.floor} and {objective.label_share}: "
            "rejected positions have a gradient there"
        )
    student, teacher = join_models(student_hidden, student_head, teacher_hidden, teacher_head)
    teacher = jax.lax.stop_gradient(teacher)
    mask = as_mask(tokens.mask)
    vocab_size = check_inputs(student, teacher, mask, vocab_size)
    student, teacher = cut_to_equal_widths(student, teacher)

    # What goes along with each position into its chunk.
    alpha = tokens.alpha
    check_segments(tokens.segment_ids, mask)
    if alpha is not None:
        alpha = spread_alpha(alpha, mask, packed=tokens.segment_ids is not None)
    per_token = {"uniforms": tokens.uniforms, "labels": tokens.labels, "acceptance": tokens.acceptance}
    for name, values in per_token.items():
        if values is not None:
            check_same_shape(name, values, "mask", mask)
    per_token |= tokens.spread(coefficient=objective.rejected is not None)
    per_token |= {"alpha": alpha, "coefficient": token_coefficients(mask, objective.normalizer, tokens.segment_ids)}

    # Devices of a `shard_map` of the caller may differ in all of it, as they do in their rows.
    inputs = (student, teacher, per_token, mask)
    student, teacher, per_token, mask = vary_alike(inputs, like=inputs)

    # The sweep: `_forward` under differentiation, the sums alone without.
    evaluate = _ObjectiveOnLogits(objective, vocab_size)
    placement = choose_placement(student, teacher, chunk_size, memory_budget, skip_weightless=skip_rejected)
    with jax.named_scope("head"):
        loss, terms = loss_and_terms(evaluate, placement, student, (teacher, per_token, mask))  # pyright: ignore[reportGeneralTypeIssues]
    return replace(reduce_terms(terms, mask, objective.normalizer, tokens.segment_ids), loss=loss)


@any_mesh(like="mask")
def map_logits(
    function: Callable[..., Any],
    student_hidden: HiddenStates,
    student_head: Head,
    teacher_hidden: HiddenStates | None,
    teacher_head: Head | None,
    mask: TokenMask,
    *,
    vocab_size: int | None = None,
    chunk_size: int | str = "auto",
    memory_budget: int | None = None,
    **per_token: Array,
) -> Any:
    """Applies a function of logits to every position of `mask`, without gradient and without [B, T, V].

    For ranking selectors, which need the scores of all positions before they choose any, and for evaluation.

    Args:
        function: `f(student_logits [R, V], teacher_logits [R, V], **per_token) -> pytree of [R]`.
        student_hidden: [B, T, Ds] and so on: see `fused_head`. "Student" and "teacher" may be any two models.
        student_head: Of [Ds, Vs].
        teacher_hidden: [B, T, Dt], or None, with the head: the function's teacher_logits are None then.
        teacher_head: Of [Dt, Vt].
        mask: [B, T], boolean or 0/1.
        vocab_size: See `fused_head`.
        chunk_size: See `fused_head`.
        memory_budget: See `fused_head`.
        **per_token: [B, T, ...] arrays by the name under which `function` takes them, such as labels.

    Returns:
        The function's pytree, of [B, T]; zeros outside the mask.

    Raises:
        InputError: Shapes do not match, or an option is out of range.
        TypeError: Hidden states or heads are not floating point, or an argument is not of its kind.

    Example:
        RHO-1: the best fifth by excess loss carries the loss.

        >>> scores = map_logits(selection.excess_loss, *student, *reference, mask, labels=labels)  # doctest: +SKIP
        >>> kept = selection.top_fraction(scores, mask, 0.2)  # doctest: +SKIP
        >>> sums = fused_head(objective, *student, *teacher, Tokens(mask, acceptance=kept))  # doctest: +SKIP
    """
    student, teacher = join_models(student_hidden, student_head, teacher_hidden, teacher_head)
    mask = as_mask(mask)
    vocab_size = check_inputs(student, teacher, mask, vocab_size)
    student, teacher = cut_to_equal_widths(student, teacher)
    for name, values in per_token.items():
        if jnp.shape(values)[:2] != mask.shape:
            raise InputError(f"{name} must have the shape of the mask, {mask.shape}, got {jnp.shape(values)}")

    def evaluate(student_logits, teacher_logits, per_token, live):
        del live
        result = function(*match_logits(student_logits, teacher_logits, vocab_size), **per_token)
        return jnp.zeros((), jnp.float32), result

    placement = choose_placement(student, teacher, chunk_size, memory_budget)
    student, teacher, per_token = jax.lax.stop_gradient((student, teacher, per_token))
    _, results, _ = placed_sweep(evaluate, student, teacher, per_token, mask, placement, with_gradient=False)
    return results


def join_models(
    student_hidden: HiddenStates, student_head: Head, teacher_hidden: HiddenStates | None, teacher_head: Head | None
) -> tuple[HeadInputs, HeadInputs | None]:
    """Hidden states with their heads; None for a teacher that is not there."""
    check_kind("student_head", student_head, Head)
    student = HeadInputs(student_hidden, student_head.matrix, student_head.bias, student_head.vocab_first)
    if teacher_hidden is None and teacher_head is None:
        return student, None
    if teacher_hidden is None or teacher_head is None:
        missing = "teacher_hidden" if teacher_hidden is None else "teacher_head"
        raise InputError(f"{missing} is None: give both of the teacher's, or neither where no teacher is asked")
    check_kind("teacher_head", teacher_head, Head)
    return student, HeadInputs(teacher_hidden, teacher_head.matrix, teacher_head.bias, teacher_head.vocab_first)


def match_logits(student_logits: Array, teacher_logits: Array | None, vocab_size: int) -> tuple[Array, Array | None]:
    """Both with the vocabulary they share, the student's alone where there is no teacher."""
    if teacher_logits is None:
        return mask_vocabulary(student_logits, vocab_size), None
    return match_vocabulary(student_logits, teacher_logits, vocab_size)


@dataclass(frozen=True)
class _ObjectiveOnLogits:
    """The objective on some positions' logits, in the form a sweep takes; comparable by value, so it can be static."""

    objective: Objective
    vocab_size: int

    def __call__(self, student_logits: Array, teacher_logits: Array | None, per_token: Any, live: Array) -> Any:
        terms = self.objective.token_terms(
            *match_logits(student_logits, teacher_logits, self.vocab_size),
            per_token["uniforms"],
            per_token["labels"],
            **{name: per_token[name] for name in ("alpha", "acceptance", "floor", "temperature", "k")},
        )
        coefficient = jnp.where(live, per_token["coefficient"], 0.0)
        return jnp.sum(jnp.where(coefficient > 0, coefficient * terms.loss, 0.0)), terms


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss_and_terms(evaluate: Evaluate, placement: Placement, student: HeadInputs, constants: Any) -> tuple[Scalar, Any]:
    """What `evaluate` sums up, differentiable to everything of the student's, and its results [B, T], which are not.

    Args:
        evaluate: Comparable by value, so that it can be static.
        placement: From `choose_placement`.
        student: Hidden states [B, T, D] and head.
        constants: The teacher's or None, the pytree of [B, T, ...] arrays that `evaluate` needs, and the mask.
    """
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


loss_and_terms.defvjp(_forward, _backward)


def check_inputs(student: HeadInputs, teacher: HeadInputs | None, mask: Array, vocab_size: int | None) -> int:
    """Raises unless everything fits together; returns the number of ids that count."""
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
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
    widths = [model.vocab_size for model in (student, teacher) if model is not None]
    if vocab_size is None:
        if min(widths) != max(widths):
            raise InputError(
                f"the heads have {widths[0]} and {widths[1]} columns; say how many ids the shared tokenizer has "
                "(vocab_size)"
            )
        return widths[0]
    if not 1 <= vocab_size <= min(widths):
        raise InputError(
            f"vocab_size must be from 1 to the width of the narrower head, {min(widths)}, got {vocab_size}"
        )
    return vocab_size
