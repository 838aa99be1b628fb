"""`selecttkd train`."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from selecttkd_jax import runs
from selecttkd_jax.cli._arguments import HostOptions, SeveralHosts
from selecttkd_jax.cli._overrides import Overrides, load, load_run
from selecttkd_jax.progress import HELD_OUT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Distil the student of CONFIG.toml from its teacher, or resume the run in its output directory.

    RUN, a run's directory, resumes; with a larger --training.steps it goes on after its end. A file has the sections
    below; on the command line an option is --section.field value, and may supply what the file lacks. Without a [lora]
    section (or a --lora option) all weights of the student are trained.
    """

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml|RUN")]
    """A configuration file in TOML, or a run's directory."""
    hosts: SeveralHosts = HostOptions()
    overrides: Overrides = field(default_factory=dict)

    def run(self) -> int:
        """Trains; the last line warns where the student got worse."""
        if runs.is_run(self.config):
            config = load_run(self.config, self.overrides, "train")
        else:
            config = load(self.config, self.overrides, "train")
        logger.debug("%s", config)
        first = self.hosts.join(config.mesh.host_timeout)
        finished = runs.train(config)
        if not first:
            return 0
        name = HELD_OUT[finished.measure]
        after = f"{finished.after[finished.measure]:.4f}"
        change = after if finished.before is None else f"{finished.before[finished.measure]:.4f} -> {after}"
        print(f"{name} {change} ({finished.after['tokens']:,.0f} tokens)")
        print(f"student  {finished.student}")
        if finished.adapter is not None:
            print(f"adapter  {finished.adapter}")
        print(f"metrics  {finished.metrics}")
        for path in finished.plots:
            print(f"plot     {path}")
        if finished.worsened:
            print(
                f"{name} ended above its start ({change}): the student got worse; try a lower optimizer.learning_rate "
                f"(it was {config.optimizer.learning_rate})"
            )
        return 0
