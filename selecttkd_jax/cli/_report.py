"""`selecttkd report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write one HTML file about a run, or about several side by side; also while they go on.

    It shows settings (differences first), curves, acceptance by position, samples with their rejected tokens marked,
    events and the environment, and loads nothing from anywhere.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Their directories."""
    output: Path | None = None
    """File to write. Left out: RUN/report.html, and for several runs report.html where the command runs."""

    def run(self) -> int:
        """Writes the report."""
        from selecttkd_jax import reporting
        from selecttkd_jax._errors import InputError

        if not self.runs:
            raise InputError("name the directory of a run, or of several (see selecttkd report --help)")
        records = [reporting.read_run(directory) for directory in self.runs]
        where = Path() if len(records) > 1 else records[0].directory
        print(reporting.write_report(records, self.output or where / "report.html"))
        return 0
