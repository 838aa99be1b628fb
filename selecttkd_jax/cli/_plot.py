"""`selecttkd plot`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Plot:
    """Draw divergence, held-out KL and token acceptance rate of a run as PNG."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""

    def run(self) -> int:
        """Plots."""
        from selecttkd_jax.plotting import plot_run

        for path in plot_run(self.run_directory):
            print(path)
        return 0
