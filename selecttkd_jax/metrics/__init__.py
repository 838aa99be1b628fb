"""The writers of a run's numbers."""

from selecttkd_jax.metrics._writers import MetricsWriter, Row, read_metrics

__all__ = ["MetricsWriter", "Row", "read_metrics"]
