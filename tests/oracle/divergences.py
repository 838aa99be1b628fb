"""The divergences in NumPy float64, one position at a time, written from their equations.

Shares nothing with the library: no log-softmax trick beyond subtracting the maximum, no closed-form gradient helper.
Every function takes two vectors of logits [V] (student, teacher) and returns (value, gradient to the student's logits)
with the gradient from the chain rule dD/dz = q * (g - <q, g>), g = dD/dq, over the tokens of non-zero probability.
"""

import numpy as np


def softmax(logits):
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max())
    return e / e.sum()


def chain(q, g):
    """q * (g - <q, g>), where tokens of probability zero have no gradient."""
    g = np.where(q > 0, g, 0.0)
    return q * (g - np.dot(q, g))


def kl(a, b):
    support = a > 0
    return float(np.sum(a[support] * np.log(a[support] / b[support])))


def forward_kl(zq, zp):
    q, p = softmax(zq), softmax(zp)
    return kl(p, q), q - p


def reverse_kl(zq, zp):
    q, p = softmax(zq), softmax(zp)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.log(q / p) + 1
    return kl(q, p), chain(q, g)


def skew_kl(zq, zp, alpha):
    q, p = softmax(zq), softmax(zp)
    m = alpha * p + (1 - alpha) * q
    with np.errstate(divide="ignore", invalid="ignore"):
        g = -(1 - alpha) * p / m
    return kl(p, m), chain(q, g)


def skew_reverse_kl(zq, zp, alpha, detach=False):
    q, p = softmax(zq), softmax(zp)
    m = (1 - alpha) * p + alpha * q
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.log(q / m) + 1 - (0 if detach else alpha * q / m)
    return kl(q, m), chain(q, g)


def jensen_shannon(zq, zp, beta):
    q, p = softmax(zq), softmax(zp)
    m = beta * p + (1 - beta) * q
    with np.errstate(divide="ignore", invalid="ignore"):
        g = -beta * (1 - beta) * p / m + (1 - beta) * (np.log(q / m) + 1 - (1 - beta) * q / m)
    return beta * kl(p, m) + (1 - beta) * kl(q, m), chain(q, g)


def total_variation(zq, zp):
    q, p = softmax(zq), softmax(zp)
    return 0.5 * float(np.abs(p - q).sum()), chain(q, 0.5 * np.sign(q - p))


def hellinger(zq, zp):
    q, p = softmax(zq), softmax(zp)
    value = np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / np.sqrt(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = -np.sqrt(p / q) / (4 * value) if value > 0 else np.zeros_like(q)
    return float(value), chain(q, g)


def adaptive_kl(zq, zp, mu, boundary):
    """AKL by sorting. "tail": head while the mass up to and with the token is at most mu, and the best token.
    "head": tail (DSKD) while the mass of this and all less likely tokens is at most 1 - mu.

    Equally likely tokens are one group: a sort would split them by accident.
    """
    q, p = softmax(zq), softmax(zp)
    levels, group = np.unique(p, return_inverse=True)  # ascending
    mass_of_level = np.bincount(group) * levels
    if boundary == "tail":
        with_and_above = np.cumsum(mass_of_level[::-1])[::-1]
        head = (with_and_above <= mu)[group] | (p == p.max())
    else:
        with_and_below = np.cumsum(mass_of_level)
        head = ~(with_and_below <= 1 - mu)[group]
    gap = np.abs(p - q)
    head_gap, tail_gap = gap[head].sum(), gap[~head].sum()
    share = head_gap / (head_gap + tail_gap)
    (forward, forward_gradient), (reverse, reverse_gradient) = forward_kl(zq, zp), reverse_kl(zq, zp)
    return share * forward + (1 - share) * reverse, share * forward_gradient + (1 - share) * reverse_gradient


def target_kl(zq, zp, label):
    q, p = softmax(zq), softmax(zp)
    pair_p, pair_q = (np.array([d[label], np.delete(d, label).sum()]) for d in (p, q))
    # Only q(label) and the sum of the others enter.
    g = np.full(len(q), -pair_p[1] / pair_q[1])
    g[label] = -pair_p[0] / pair_q[0]
    return kl(pair_p, pair_q), chain(q, g)


def non_target_kl(zq, zp, label):
    rest = np.arange(len(zq)) != label
    value, gradient = forward_kl(np.asarray(zq)[rest], np.asarray(zp)[rest])
    full = np.zeros(len(zq))
    full[rest] = gradient
    return value, full


def decoupled_kl(zq, zp, label):
    (a, da), (b, db) = target_kl(zq, zp, label), non_target_kl(zq, zp, label)
    return a + b, da + db


def teacher_top_k(zq, zp, k, tail=True, reverse=False):
    """By sorting: the teacher's k first tokens and one bucket for the rest, or the k first alone, renormalised."""
    q, p = softmax(zq), softmax(zp)
    kth = np.sort(p)[::-1][min(k, len(p)) - 1]
    head = p >= kth  # those as likely as the k-th belong to it

    def buckets(d):
        return np.append(d[head], d[~head].sum()) if tail else d[head] / d[head].sum()

    a, b = buckets(q), buckets(p)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(a > 0, np.log(a / b) + 1, 0) if reverse else np.where(a > 0, -b / a, 0)
    value = kl(a, b) if reverse else kl(b, a)
    g = np.zeros(len(q))
    if tail:
        g[head], g[~head] = slopes[:-1], slopes[-1]
        return value, chain(q, g)
    gradient = np.zeros(len(q))
    gradient[head] = chain(a, slopes)
    return value, gradient


def cross_entropy(zq, zp, label):
    q = softmax(zq)
    return float(-np.log(q[label])), q - (np.arange(len(q)) == label)


def hard_cross_entropy(zq, zp, label):
    return cross_entropy(zq, zp, int(np.argmax(zp)) if label < 0 else label)


def soft_cross_entropy(zq, zp):
    q, p = softmax(zq), softmax(zp)
    return float(-np.sum(p[p > 0] * np.log(q[p > 0]))), q - p


def entropy(z):
    p = softmax(z)
    return float(-np.sum(p[p > 0] * np.log(p[p > 0])))
