"""SelecTKD in PyTorch as its equations read: full logits, `topk`, `multinomial`, autograd; no code shared with ours.

    loss = normalised sum of w D(p, q),   w = floor + (1 - floor) accepted

p is the teacher's distribution of the next token, q the student's. Divergences and verifiers take logits [..., V] and
return [...]; `selective_loss` puts them together for [B, T, V] (or [N, V], which counts as one sequence).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SelectiveLoss(NamedTuple):
    """The loss, its token acceptance rate, and the verdict on each position."""

    loss: Tensor
    """Scalar, differentiable to the student's logits."""
    tar: Tensor
    """Scalar: mean over sequences of the share of their response tokens accepted."""
    accepted: Tensor
    """[B, T] float: 0 or 1, or the probability of being accepted."""


def selective_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    verify: Callable[[Tensor, Tensor], Tensor],
    floor: float = 0.01,
    normalizer: str = "sequence",
) -> SelectiveLoss:
    """Distils every response token, fully where the teacher accepts the student's proposal and by `floor` elsewhere.

    Args:
        student_logits: [B, T, V] float32.
        teacher_logits: [B, T, V] float32; a constant.
        mask: [B, T] bool, the response tokens.
        divergence: One of the divergences below; bind `alpha` with `functools.partial`.
        verify: One of the verifiers below; bind `k` and the source of randomness.
        floor: Weight of a rejected token (the paper's beta).
        normalizer: "sequence" (mean over sequences of each one's mean over its response tokens) or "token" (mean over
            all response tokens). Rejected tokens stay in the divisor.
    """
    teacher_logits = teacher_logits.detach()
    with torch.no_grad():
        accepted = verify(student_logits, teacher_logits).float()
    weight = floor + (1 - floor) * accepted
    mean = {"sequence": mean_of_sequences, "token": mean_of_tokens}[normalizer]
    loss = mean(weight * divergence(student_logits, teacher_logits), mask)
    return SelectiveLoss(loss, mean_of_sequences(accepted, mask), accepted)


def mean_of_sequences(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over sequences of each one's mean over its valid positions; sequences without any do not count."""
    tokens = mask.sum(-1)
    means = torch.where(mask, values, 0.0).sum(-1) / tokens.clamp(min=1)
    return means.sum() / (tokens > 0).sum().clamp(min=1)


def mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all valid positions."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


# --- Divergences: (student_logits [..., V], teacher_logits [..., V]) -> [...], in nats ---


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(p || q)."""
    # kl_div's first argument is the logarithm of the second distribution of KL(. || .).
    log_q, log_p = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(q || p)."""
    log_q, log_p = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)


def skew_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), differentiated through the mixture."""
    log_q, log_p = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1)
    return F.kl_div(log_mixture(log_p, log_q, alpha), log_p, reduction="none", log_target=True).sum(-1)


def skew_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q), differentiated through the mixture."""
    log_q, log_p = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1)
    return F.kl_div(log_mixture(log_q, log_p, alpha), log_q, reduction="none", log_target=True).sum(-1)


def log_mixture(log_first: Tensor, log_second: Tensor, share: float) -> Tensor:
    """log(share first + (1 - share) second), finite also where both probabilities underflow."""
    share = torch.tensor(share, dtype=log_first.dtype, device=log_first.device)
    return torch.logaddexp(log_first + torch.log(share), log_second + torch.log1p(-share))


# --- Verifiers: (student_logits [..., V], teacher_logits [..., V]) -> accepted [...], not differentiated ---


def accept_all(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Vanilla distillation."""
    return torch.ones(student_logits.shape[:-1], device=student_logits.device)


def greedy_top_k(student_logits: Tensor, teacher_logits: Tensor, k: int = 5) -> Tensor:
    """Whether the student's most likely token is among the teacher's k most likely."""
    proposal = student_logits.argmax(-1, keepdim=True)
    return (teacher_logits.topk(k, dim=-1).indices == proposal).any(-1)


def spec_k(
    student_logits: Tensor,
    teacher_logits: Tensor,
    k: int = 5,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Whether one of k tokens drawn from the student passes the speculative test u < min(1, p(y) / q(y)).

    Given `uniforms` [...], one per position, it accepts where they fall below `spec_k_acceptance`: the same law without
    the candidates, and the way to let two programs decide alike. Without, it draws with `generator`.
    """
    if uniforms is not None:
        return uniforms < spec_k_acceptance(student_logits, teacher_logits, k)
    q, p = F.softmax(student_logits, -1), F.softmax(teacher_logits, -1)
    candidates = torch.multinomial(q.flatten(0, -2), k, replacement=True, generator=generator)
    candidates = candidates.view(*q.shape[:-1], k)
    ratio = p.gather(-1, candidates) / q.gather(-1, candidates)
    draws = torch.rand(ratio.shape, generator=generator, device=ratio.device)
    return (draws < ratio).any(-1)


def spec_k_acceptance(student_logits: Tensor, teacher_logits: Tensor, k: int = 5) -> Tensor:
    """The probability that `spec_k` accepts: 1 - (1 - sum_v min(p, q))^k."""
    q, p = F.softmax(student_logits, -1), F.softmax(teacher_logits, -1)
    return 1 - (1 - torch.minimum(p, q).sum(-1)).clamp(min=0) ** k
