"""Sums and counts to means, throughput, and the writers of a run's numbers."""

from selecttkd_jax.metrics.means import training_means
from selecttkd_jax.metrics.writers import MetricsWriter, read_metrics

__all__ = ["MetricsWriter", "read_metrics", "training_means"]
