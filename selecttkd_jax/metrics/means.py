"""The one place where sums become means."""

from selecttkd_jax.array_types import Scalar
from selecttkd_jax.distill import LossSums


def training_means(sums: LossSums) -> dict[str, float]:
    """Turns the sums of a step into the numbers a person reads.

    Args:
        sums: The objective's sums over one batch, on the host.

    Returns:
        `loss` (what was minimised), `divergence` (unweighted, per response token), `tar` (token acceptance rate, mean
        over sequences), `tar_pooled` (over all response tokens), `mean_weight`, `tokens` (response tokens).
    """

    def mean(total: Scalar, count: Scalar) -> float:
        return float(total) / float(count) if count else 0.0

    return {
        "loss": mean(sums.loss, sums.count),
        "divergence": mean(sums.divergence, sums.tokens),
        "tar": mean(sums.accepted_fraction, sums.sequences),
        "tar_pooled": mean(sums.accepted, sums.tokens),
        "mean_weight": mean(sums.weight, sums.tokens),
        "tokens": float(sums.tokens),
    }
