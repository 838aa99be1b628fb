"""The verifiers in NumPy float64, one position at a time, written from their definitions."""

import numpy as np
from oracle.divergences import entropy, hellinger, softmax


def greedy_top_k(zq, zp, k):
    """By sorting: the student's first argmax, among the teacher's first k."""
    return label_in_top_k(zp, int(np.argmax(np.asarray(zq, np.float64))), k)


def spec_k(zq, zp, k):
    return 1.0 - (1.0 - np.minimum(softmax(zq), softmax(zp)).sum()) ** k


def hellinger_gate(zq, zp, tau):
    return float(hellinger(zq, zp)[0] <= tau)


def entropy_gate(zq, zp, threshold, source):
    return float(entropy(zp if source == "teacher" else zq) <= threshold)


def label_in_top_k(zp, label, k):
    """Among the first k of a stable sort by falling logit, and not excluded."""
    zp = np.asarray(zp, np.float64)
    return float(label in np.argsort(-zp, kind="stable")[:k] and zp[label] > -np.inf)


def spec_label(zq, zp, label):
    with np.errstate(divide="ignore", invalid="ignore"):
        q, p = softmax(zq)[label], softmax(zp)[label]
        return 0.0 if p == 0 else min(1.0, p / q)


def nucleus(zq, zp, tau):
    """By a stable sort: the proposal's place among tokens of falling probability, and the mass before it."""
    order = np.argsort(-np.asarray(zp, np.float64), kind="stable")
    place = int(np.flatnonzero(order == int(np.argmax(np.asarray(zq, np.float64))))[0])
    return float(softmax(zp)[order[:place]].sum() < tau and zp[order[place]] > -np.inf)
