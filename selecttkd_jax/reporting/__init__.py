"""What runs left on disk, read for people: compared in a table, or as one page of HTML. Nothing here needs JAX."""

from selecttkd_jax.reporting._compare import Comparison, compare
from selecttkd_jax.reporting._page import write_report
from selecttkd_jax.reporting._record import RunRecord, read_run

__all__ = ["Comparison", "RunRecord", "compare", "read_run", "write_report"]
