"""`selecttkd plot`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Plot:
    """Draw a run as PNG, for light and for dark pages.

    Held-out KL, divergence and token acceptance rate over the steps; where a model wrote while it trained, also
    acceptance by place in the response, and the newest sample's tokens by verdict.
    """

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""

    def run(self) -> int:
        """Plots."""
        from selecttkd_jax.plotting import plot_run

        for path in plot_run(self.run_directory):
            print(path)
        return 0
