"""Arguments that several commands have."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from selecttkd_jax._errors import check_at_least
from selecttkd_jax._signals import share_signals

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Directory = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
ConfigFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")]
Flag = tyro.conf.FlagCreatePairsOff[bool]
RunDirectory = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Dtype = Literal["float32", "bfloat16", "float16"]


def parse_table(words: Sequence[str]) -> dict[str, Any]:
    """The table that words such as `enable_thinking=false` spell: each value as JSON has it, or a text.

    Example:
        >>> parse_table(["enable_thinking=false", "effort=high"])
        {'enable_thinking': False, 'effort': 'high'}
    """
    table: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        try:
            table[name] = json.loads(value)
        except (ValueError, RecursionError):
            table[name] = value
    return table


Table = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=parse_table,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [f"{name}={json.dumps(value)}" for name, value in table.items()],
    ),
]


@dataclass(frozen=True)
class HostOptions:
    """Who this process is among several, where no launcher says it (see docs/clusters.md)."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Where the first process listens and all others report."""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many processes there are; 1 for a run of its own, whatever a launcher says."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """Which one this is, from 0."""
    connect_timeout: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 300
    """How long to wait for the others at the start."""

    def join(self, timeout: int) -> bool:
        """Joins the run's other processes, if there are any.

        Returns:
            Whether this is the first process, the only one that says anything.
        """
        from selecttkd_jax import runs

        said = runs.Hosts(self.coordinator, num_processes=self.num_processes, process_id=self.process_id)
        check_at_least("--connect-timeout", self.connect_timeout, 1)
        runs.join_hosts(said, timeout, connect_timeout=self.connect_timeout)
        share_signals()
        import jax

        first = jax.process_index() == 0
        if not first:
            logging.getLogger("selecttkd_jax").setLevel(logging.WARNING)
        return first


SeveralHosts = tyro.conf.OmitArgPrefixes[HostOptions]
