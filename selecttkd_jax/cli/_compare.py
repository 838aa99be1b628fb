"""`selecttkd compare`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import Flag


@dataclass(frozen=True)
class Compare:
    """Put runs side by side: the last held-out numbers, steps, time, and the options in which they differ."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
    """Their directories; of one alone, what it reached."""
    json: Flag = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Prints a table, or JSON."""
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        from selecttkd_jax import reporting
        from selecttkd_jax._errors import InputError

        if not self.runs:
            raise InputError("name the directories of the runs to compare (see selecttkd compare --help)")
        compared = reporting.compare([reporting.read_run(directory) for directory in self.runs])
        if self.json:
            print(json.dumps(compared.as_json(), indent=2))
            return 0
        table = Table("", *(Column(Text(name), overflow="fold") for name in compared.names))
        for label, cells in compared.rows():
            table.add_row(Text(label), *(Text(cell) for cell in cells))
        Console().print(table)
        return 0
