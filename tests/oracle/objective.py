"""The selective objective as loops over sequences and tokens, NumPy float64, from its definition."""

import numpy as np


def objective(divergence, acceptance, mask, uniforms, floor, normalizer, rejected=None):
    """All arguments [B, T], `rejected` the divergence of rejected tokens, if it is another.

    Returns a dictionary of sums; the loss is sums["loss"] / sums["count"].
    """
    rejected = divergence if rejected is None else rejected
    sequence_means, all_terms, weights, divergences, accepted_all, fractions = [], [], [], [], [], []
    for b in range(len(mask)):
        terms, accepted_here = [], []
        for t in range(len(mask[b])):
            if not mask[b][t]:
                continue
            accepted = acceptance[b][t] if uniforms is None else float(uniforms[b][t] < acceptance[b][t])
            weight = floor + (1 - floor) * accepted
            terms.append(accepted * divergence[b][t] + floor * (1 - accepted) * rejected[b][t])
            weights.append(weight)
            divergences.append(divergence[b][t])
            accepted_here.append(accepted)
        if terms:
            sequence_means.append(np.mean(terms))
            fractions.append(np.mean(accepted_here))
            all_terms += terms
            accepted_all += accepted_here
    loss, count = {
        "sequence": (sum(sequence_means), len(sequence_means)),
        "token": (sum(all_terms), len(all_terms)),
        "weight": (sum(all_terms), sum(weights)),
    }[normalizer]
    return {
        "loss": loss,
        "count": count,
        "divergence": sum(divergences),
        "weight": sum(weights),
        "accepted": sum(accepted_all),
        "tokens": len(all_terms),
        "sequences": len(sequence_means),
        "accepted_fraction": sum(fractions),
    }
