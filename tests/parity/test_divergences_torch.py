"""Values and gradients against the published definitions in PyTorch, written here from the papers' equations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import distill, losses, selection

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.torch

B, T, V = 3, 7, 101


def batch(seed=0):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 3, (B, T, V)).astype(np.float32)
    student = (0.5 * teacher + rng.normal(0, 2, (B, T, V))).astype(np.float32)
    labels = rng.integers(0, V, (B, T))
    ignored = np.arange(T) >= np.array([7, 4, 2])[:, None]
    return student, teacher, np.where(ignored, -100, labels).astype(np.int32)


student, teacher, labels = batch()
mask = labels != -100


# --- PyTorch definitions: q and p are [..., V] logits of student and teacher, results [...] ---


def t_forward_kl(q, p):
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def t_reverse_kl(q, p):
    return F.kl_div(p.log_softmax(-1), q.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def t_skew_kl(q, p, lam=0.1):
    # DistiLLM: the mixture in probabilities, differentiated.
    mixture = lam * p.softmax(-1) + (1 - lam) * q.softmax(-1)
    return (p.softmax(-1) * (p.log_softmax(-1) - mixture.log())).sum(-1)


def t_skew_reverse_kl(q, p, lam=0.1, detach=False):
    inside = q.detach() if detach else q  # DistiLLM-2 detaches
    mixture = (1 - lam) * p.softmax(-1) + lam * inside.softmax(-1)
    return (q.softmax(-1) * (q.log_softmax(-1) - mixture.log())).sum(-1)


def t_jsd(q, p, beta):
    # GKD, in log space as TRL does.
    log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
    log_m = torch.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
    return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)


def t_total_variation(q, p):
    return 0.5 * (p.softmax(-1) - q.softmax(-1)).abs().sum(-1)


def t_hellinger(q, p):
    return torch.linalg.vector_norm(p.softmax(-1).sqrt() - q.softmax(-1).sqrt(), dim=-1) / 2**0.5


def t_adaptive_kl(q, p, mu=0.5):
    prob = p.softmax(-1)
    ordered, index = prob.sort(dim=-1, descending=True)
    gap = (ordered - q.detach().softmax(-1).gather(-1, index)).abs()
    head = ordered.cumsum(-1) <= mu
    head[..., 0] = True
    share = (gap * head).sum(-1) / gap.sum(-1)
    return share * t_forward_kl(q, p) + (1 - share) * t_reverse_kl(q, p)


def t_adaptive_kl_dskd(q, p, alpha=0.5):
    prob = p.softmax(-1)
    ordered, index = prob.sort(dim=-1)
    gap = (ordered - q.detach().softmax(-1).gather(-1, index)).abs()
    tail = ordered.cumsum(-1) <= alpha
    share = (gap * tail).sum(-1) / gap.sum(-1)
    return (1 - share) * t_forward_kl(q, p) + share * t_reverse_kl(q, p)


def t_label_and_rest(z, y):
    one = F.one_hot(y, V).bool()
    return torch.stack([(z.softmax(-1) * one).sum(-1), (z.softmax(-1) * ~one).sum(-1)], -1)


def t_target_kl(q, p, y):
    pair_q, pair_p = t_label_and_rest(q, y), t_label_and_rest(p, y)
    return (pair_p * (pair_p / pair_q).log()).sum(-1)


def t_non_target_kl(q, p, y):
    one = F.one_hot(y, V).bool()
    log_q, log_p = (z.masked_fill(one, -1e9).log_softmax(-1) for z in (q, p))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


Y = torch.tensor(np.where(mask, labels, 0), dtype=torch.int64)
Y_NUMPY = Y.numpy().astype(np.int32)
PAIRS = {
    "forward_kl": (losses.forward_kl, t_forward_kl),
    "reverse_kl": (losses.reverse_kl, t_reverse_kl),
    "skew_kl": (losses.skew_kl, t_skew_kl),
    "skew_reverse_kl": (losses.skew_reverse_kl, t_skew_reverse_kl),
    "skew_reverse_kl detached": (
        partial(losses.skew_reverse_kl, detach_mixture=True),
        partial(t_skew_reverse_kl, detach=True),
    ),
    "jsd 0.1": (partial(losses.jensen_shannon, beta=0.1), partial(t_jsd, beta=0.1)),
    "jsd 0.9": (partial(losses.jensen_shannon, beta=0.9), partial(t_jsd, beta=0.9)),
    "total_variation": (losses.total_variation, t_total_variation),
    "hellinger": (losses.hellinger, t_hellinger),
    "akl": (losses.adaptive_kl, t_adaptive_kl),
    "akl dskd": (partial(losses.adaptive_kl, boundary="head", mu=0.4), partial(t_adaptive_kl_dskd, alpha=0.6)),
    "target_kl": (partial(losses.target_kl, labels=Y_NUMPY), partial(t_target_kl, y=Y)),
    "non_target_kl": (partial(losses.non_target_kl, labels=Y_NUMPY), partial(t_non_target_kl, y=Y)),
    "soft_cross_entropy": (
        losses.soft_cross_entropy,
        lambda q, p: F.cross_entropy(q.transpose(1, 2), p.softmax(-1).transpose(1, 2), reduction="none"),
    ),
    "cross_entropy": (
        lambda q, p: losses.cross_entropy(q, Y_NUMPY),
        lambda q, p: F.cross_entropy(q.transpose(1, 2), Y, reduction="none"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients(name):
    ours, theirs = PAIRS[name]
    # In float64, so that what is measured is the rounding of ours, which runs in float32.
    q, p = torch.tensor(student, dtype=torch.float64, requires_grad=True), torch.tensor(teacher, dtype=torch.float64)
    wanted = theirs(q, p)
    wanted.sum().backward()
    with_values = jax.value_and_grad(lambda z: (jnp.sum(v := ours(z, teacher)), v), has_aux=True)
    (_, values), gradient = jax.jit(with_values)(student)
    np.testing.assert_allclose(values, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
    scale = np.abs(q.grad.numpy()).max(axis=-1, keepdims=True)
    assert np.max(np.abs(np.asarray(gradient) - q.grad.numpy()) / scale) < 1e-5


def test_greedy_top_k_is_topk_membership():
    for k in (1, 3, 5, 10, V):
        proposal = torch.tensor(student).argmax(-1, keepdim=True)
        wanted = (torch.tensor(teacher).topk(k, dim=-1).indices == proposal).any(-1)
        np.testing.assert_array_equal(selection.greedy_top_k(student, teacher, k=k), wanted.numpy().astype(np.float32))


def test_distillm_2_objective():
    """(2 - b) SEQ[SKL] + b SEQ[SRKL, detached mixture], mean over pairs, b = 1."""

    def seq(per_token, keep):
        return ((per_token * keep).sum(-1) / keep.sum(-1)).mean()

    other_student, other_teacher, other_labels = batch(seed=1)
    tensors = [
        torch.tensor(a, requires_grad=i in (0, 2))
        for i, a in enumerate((student, teacher, other_student, other_teacher))
    ]
    keep = [torch.tensor(y != -100) for y in (labels, other_labels)]
    wanted = seq(t_skew_kl(*tensors[:2]), keep[0]) + seq(t_skew_reverse_kl(*tensors[2:], detach=True), keep[1])
    wanted.backward()

    objective = distill.TwoStreamObjective(
        distill.Objective(losses.skew_kl), distill.Objective(partial(losses.skew_reverse_kl, detach_mixture=True))
    )

    def loss(q1, q2):
        sums = objective(
            distill.Stream(q1, teacher, distill.Tokens(mask)),
            distill.Stream(q2, other_teacher, distill.Tokens(other_labels != -100)),
        )
        return sums.loss / sums.count

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(student, other_student)
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, (tensors[0].grad, tensors[2].grad), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize(("normalizer", "k", "floor"), [("sequence", 5, 0.01), ("token", 1, 0.1), ("weight", 3, 0.0)])
def test_selecttkd_objective(normalizer, k, floor):
    """V_t D_t with V in {floor, 1} by top-k membership, as a loop over sequences."""
    q, p = torch.tensor(student, requires_grad=True), torch.tensor(teacher)
    accepted = (p.topk(k, dim=-1).indices == q.detach().argmax(-1, keepdim=True)).any(-1)
    weight = torch.where(accepted, 1.0, floor)
    terms = weight * t_forward_kl(q, p)
    rows = [terms[b][torch.tensor(mask[b])] for b in range(B)]
    wanted = {
        "sequence": torch.stack([row.mean() for row in rows]).mean(),
        "token": torch.cat(rows).mean(),
        "weight": torch.cat(rows).sum() / weight[torch.tensor(mask)].sum(),
    }[normalizer]
    wanted.backward()
    objective = distill.Objective(
        losses.forward_kl, partial(selection.greedy_top_k, k=k), floor=floor, normalizer=normalizer
    )

    def loss(z):
        sums = objective(z, teacher, mask)
        return sums.loss / sums.count, sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, q.grad.numpy(), rtol=1e-4, atol=1e-5 * q.grad.abs().max().item())
    by_sequence = np.mean([accepted[b][torch.tensor(mask[b])].float().mean() for b in range(B)])
    np.testing.assert_allclose(sums.accepted_fraction / sums.sequences, by_sequence, rtol=1e-6)


def test_adaspec_quantile_and_atkd_median():
    scores = np.random.default_rng(2).normal(size=(B, T)).astype(np.float32)
    valid = torch.tensor(scores)[torch.tensor(mask)]
    for kept_fraction in (0.25, 0.4, 0.6, 0.9):
        wanted = (torch.tensor(scores) >= valid.quantile(1 - kept_fraction) - 1e-6).numpy() & mask
        kept = selection.top_fraction(scores, mask, kept_fraction, counting="quantile")
        np.testing.assert_array_equal(kept, wanted)
    below, above = selection.median_split(scores, mask)
    easy = torch.tensor(scores) < valid.median()
    np.testing.assert_array_equal(below, easy.numpy() & mask)
    np.testing.assert_array_equal(above, ~easy.numpy() & mask)


def test_error_norm():
    q = torch.tensor(student)
    wanted = torch.linalg.vector_norm(q.softmax(-1) - F.one_hot(Y, V), dim=-1)
    np.testing.assert_allclose(selection.error_norm(student, Y_NUMPY), wanted.numpy(), rtol=1e-5, atol=1e-6)
