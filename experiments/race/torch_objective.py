"""The objective of the loss race in plain PyTorch, from hidden states: the baseline's loss on full logits."""

import torch
from selecttkd_torch import greedy_top_k, reverse_kl, selective_loss

FLOOR = 0.01


def loss_from_hidden(student_hidden, student_head, teacher_hidden, teacher_head, mask):
    """Reverse KL weighed by greedy top-5 verification. Hidden states [N, D], heads [V, D], mask [N].

    Returns:
      The mean over the positions of the mask, and how many of them are accepted.
    """
    student_logits = student_hidden @ student_head.T
    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_head.T
    loss, _, accepted = selective_loss(
        student_logits, teacher_logits, mask, reverse_kl, greedy_top_k, floor=FLOOR, normalizer="token"
    )
    return loss, (accepted * mask).sum()


def loss_from_divergence(divergence, accepted, mask):
    """The same where the divergence of each position comes from elsewhere: [N] each."""
    weight = FLOOR + (1 - FLOOR) * accepted
    return (weight * divergence * mask).sum() / mask.sum(), (accepted * mask).sum()


@torch.no_grad()
def verify_by_chunks(student_hidden, student_head, teacher_hidden, teacher_head, rows=128):
    """Verification for someone who has hidden states only: a chunk of positions at a time, never all logits."""
    chunks = zip(student_hidden.split(rows), teacher_hidden.split(rows), strict=True)
    return torch.cat([greedy_top_k(student @ student_head.T, teacher @ teacher_head.T) for student, teacher in chunks])
