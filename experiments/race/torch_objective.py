"""The objective of the race in plain PyTorch, as a user would write it: full logits, topk, kl_div."""

import torch
import torch.nn.functional as F

FLOOR = 0.01
TOP_K = 5


def loss_from_hidden(student_hidden, student_head, teacher_hidden, teacher_head, mask):
    """Reverse KL weighed by greedy top-5 verification: (mean over the mask, number accepted). Hidden states [N, D]."""
    student_logits = student_hidden @ student_head.T
    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_head.T
        accepted = greedy_top_k(student_logits, teacher_logits)
    divergence = reverse_kl(student_logits, teacher_logits)
    return weighted_mean(divergence, accepted, mask)


def greedy_top_k(student_logits, teacher_logits):
    """Whether the student's argmax is among the teacher's five most likely tokens: [N] booleans."""
    return (teacher_logits.topk(TOP_K).indices == student_logits.argmax(-1, keepdim=True)).any(-1)


def reverse_kl(student_logits, teacher_logits):
    """KL(student || teacher) of each position, [N]."""
    student_log_probs, teacher_log_probs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return F.kl_div(teacher_log_probs, student_log_probs, log_target=True, reduction="none").sum(-1)


def forward_kl(student_logits, teacher_logits):
    """KL(teacher || student) of each position."""
    student_log_probs, teacher_log_probs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return F.kl_div(student_log_probs, teacher_log_probs, log_target=True, reduction="none").sum(-1)


def weighted_mean(divergence, accepted, mask):
    """(mean over the mask's positions of weight times divergence, number accepted among them)."""
    weight = FLOOR + (1 - FLOOR) * accepted.float()
    return (weight * divergence * mask).sum() / mask.sum(), (accepted & mask).sum()


@torch.no_grad()
def greedy_top_k_by_chunks(student_hidden, student_head, teacher_hidden, teacher_head, rows=128):
    """Verification for someone who has hidden states only: a chunk of positions at a time, never all logits."""
    chunks = zip(student_hidden.split(rows), teacher_hidden.split(rows), strict=True)
    return torch.cat([greedy_top_k(student @ student_head.T, teacher @ teacher_head.T) for student, teacher in chunks])
