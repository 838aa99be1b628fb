"""A clipped policy gradient and an objective on the same tokens, from hidden states: one sweep of the fused head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, HiddenStates, PerToken, Scalar
from selecttkd_jax._checks import as_mask, check_in_range, check_same_shape
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import any_mesh, vary_alike
from selecttkd_jax.distill._fused_head import check_inputs, join_models, loss_and_terms, match_logits
from selecttkd_jax.distill._inputs import Head, Tokens, check_kind
from selecttkd_jax.distill._objective import Objective, check_segments
from selecttkd_jax.distill._placed_sweep import choose_placement, cut_to_equal_widths
from selecttkd_jax.distill._sums import LossSums, TokenTerms, reduce_terms, token_coefficients
from selecttkd_jax.losses import cross_entropy

# Beyond e^80 a ratio overflows float32, and infinity times the 0 of a clipped token is NaN.
LARGEST_LOG_RATIO = 80.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Policy:
    """What a policy gradient needs of each token beside what `Tokens` says; a pytree of constants, [B, T] each.

    Attributes:
        old_log_prob: log q_old(label), of the student that wrote the text.
        importance: w, q_old(label) over the probability with which the label was drawn.
        advantage: A, by how much the label did better than others.
        share: What the surrogate of a token counts for in the numerator of the loss.
    """

    old_log_prob: PerToken
    importance: PerToken
    advantage: PerToken
    share: PerToken


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicySums:
    """Sums over the valid positions of a batch. Add them up, then divide `loss` by `count`."""

    loss: Scalar  # numerator: of the objective, and each token's surrogate times its share
    count: Scalar  # the objective's
    objective: LossSums
    surrogate: Scalar
    ratio: Scalar
    clipped: Scalar  # tokens whose surrogate has no gradient

    def means(self) -> dict[str, float]:
        """What the objective says, with `loss` of both; and the means over tokens of `surrogate`, `ratio`, `clipped`.

        `regularizer` is the objective's part of the loss.
        """
        means = self.objective.means()
        tokens, count = max(means["tokens"], 1.0), float(self.count)
        by_token = {name: float(getattr(self, name)) / tokens for name in ("surrogate", "ratio", "clipped")}
        loss = float(self.loss) / count if count else 0.0
        return means | {"loss": loss, "regularizer": means["loss"]} | by_token


class _PolicyTerms(NamedTuple):
    """Of each position."""

    objective: TokenTerms
    surrogate: PerToken
    ratio: PerToken
    clipped: PerToken


@any_mesh()
def fused_policy(
    objective: Objective,
    student_hidden: HiddenStates,
    student_head: Head,
    teacher_hidden: HiddenStates,
    teacher_head: Head,
    tokens: Tokens,
    policy: Policy,
    *,
    clip: float = 0.2,
    vocab_size: int | None = None,
    chunk_size: int | str = "auto",
    memory_budget: int | None = None,
) -> PolicySums:
    """An objective, and the clipped surrogate of a policy gradient, which raises what did better than others.

        rho = w q(label) / q_old(label)
        surrogate = max(-A rho, -A clip(rho, 1 - c, 1 + c))
        loss = sum of the objective + sum_{b,t} share surrogate

    Args:
        objective: What is minimised at every position over the whole vocabulary: MiniLLM's single-step term.
        student_hidden: [B, T, Ds], after the final norm.
        student_head: Of [Ds, Vs].
        teacher_hidden: [B, T, Dt], a constant.
        teacher_head: Of [Dt, Vt].
        tokens: The mask and labels, and what else the objective needs.
        policy: What is known of each token's past and worth.
        clip: c, at least 0.
        vocab_size: See `fused_head`, also for the others.
        chunk_size: Positions whose logits exist at once, or "auto".
        memory_budget: Bytes for them under "auto".

    Returns:
        PolicySums, differentiable to `student_hidden` and `student_head`.

    Raises:
        InputError: Shapes do not match, or an option is out of range.

    Source: Gu et al., 2024, "MiniLLM", section 2.2, and microsoft/LMOps, minillm/losses.py; Schulman et al., 2017,
    "Proximal Policy Optimization Algorithms", Eq. 7.
    """
    check_kind("tokens", tokens, Tokens)
    check_in_range("clip", clip, 0.0, 1.0)
    if tokens.alpha is not None:
        raise InputError("a skew per sequence (alpha) has no place in a policy gradient; leave it out")
    student, teacher = join_models(student_hidden, student_head, teacher_hidden, teacher_head)
    mask = as_mask(tokens.mask)
    check_segments(tokens.segment_ids, mask)
    vocab_size = check_inputs(student, teacher, mask, vocab_size)
    student, teacher = cut_to_equal_widths(student, jax.lax.stop_gradient(teacher))
    per_token = {
        "uniforms": tokens.uniforms,
        "labels": tokens.labels,
        "acceptance": tokens.acceptance,
        **tokens.spread(coefficient=objective.rejected is not None),
        "coefficient": token_coefficients(mask, objective.normalizer, tokens.segment_ids),
        "old_log_prob": policy.old_log_prob,
        "importance": policy.importance,
        "advantage": policy.advantage,
        "share": policy.share,
    }
    for name, values in per_token.items():
        if values is not None:
            check_same_shape(name, values, "mask", mask)
    inputs = (student, teacher, jax.lax.stop_gradient(per_token), mask)
    student, teacher, per_token, mask = vary_alike(inputs, like=inputs)

    evaluate = _PolicyOnLogits(objective, clip, vocab_size)
    placement = choose_placement(student, teacher, chunk_size, memory_budget)
    with jax.named_scope("head"):
        loss, terms = loss_and_terms(evaluate, placement, student, (teacher, per_token, mask))  # pyright: ignore[reportGeneralTypeIssues]
    sums = reduce_terms(terms.objective, mask, objective.normalizer, tokens.segment_ids)
    # Of what is outside the mask the sweep says 0.
    return PolicySums(
        loss=loss,
        count=sums.count,
        objective=sums,
        surrogate=jnp.sum(terms.surrogate),
        ratio=jnp.sum(terms.ratio),
        clipped=jnp.sum(terms.clipped),
    )


@dataclass(frozen=True)
class _PolicyOnLogits:
    """Both on some positions' logits, in the form a sweep takes; comparable by value, so it can be static."""

    objective: Objective
    clip: float
    vocab_size: int

    def __call__(self, student_logits: Array, teacher_logits: Array | None, per_token: Any, live: Array) -> Any:
        student_logits, teacher_logits = match_logits(student_logits, teacher_logits, self.vocab_size)
        labels, advantage = per_token["labels"], per_token["advantage"]
        options = {name: per_token[name] for name in ("acceptance", "floor", "temperature", "k")}
        terms = self.objective.token_terms(student_logits, teacher_logits, per_token["uniforms"], labels, **options)
        log_ratio = -cross_entropy(student_logits, labels) - per_token["old_log_prob"]
        ratio = per_token["importance"] * jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))
        free = -advantage * ratio
        held = -advantage * jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
        surrogate = jnp.maximum(free, held)

        coefficient, share = (jnp.where(live, per_token[name], 0.0) for name in ("coefficient", "share"))
        of_objective = jnp.sum(jnp.where(coefficient > 0, coefficient * terms.loss, 0.0))
        of_surrogate = jnp.sum(jnp.where(share > 0, share * surrogate, 0.0))
        clipped = (held > free).astype(jnp.float32)
        return of_objective + of_surrogate, _PolicyTerms(terms, surrogate, ratio, clipped)
