"""The writers of a run's numbers."""

from selecttkd_jax.metrics._rows import Row, read_metrics, rows_until
from selecttkd_jax.metrics._writers import MetricsWriter

__all__ = ["MetricsWriter", "Row", "read_metrics", "rows_until"]
