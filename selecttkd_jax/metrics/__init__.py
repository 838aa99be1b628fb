"""The writers of a run's numbers."""

from selecttkd_jax.metrics._events import EVENTS_FILE, Event, EventLog, read_events
from selecttkd_jax.metrics._rows import Row, held_out_numbers, read_metrics, rows_until
from selecttkd_jax.metrics._writers import MetricsWriter, read_samples

__all__ = [
    "EVENTS_FILE",
    "Event",
    "EventLog",
    "MetricsWriter",
    "Row",
    "held_out_numbers",
    "read_events",
    "read_metrics",
    "read_samples",
    "rows_until",
]
