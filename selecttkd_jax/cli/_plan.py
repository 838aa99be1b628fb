"""`selecttkd plan`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import ConfigFile
from selecttkd_jax.cli._overrides import Overrides, load


@dataclass(frozen=True)
class Plan:
    """Compile the training step of CONFIG.toml for a machine that is not here, and print what it needs of it.

    Of the models, config.json is enough. An option of the configuration is --section.field value. The exit code is 1
    where the step does not fit.
    """

    config: ConfigFile
    """A configuration file in TOML."""
    target: Annotated[str, tyro.conf.arg(metavar="MACHINE")]
    """tpu:v5e:4x4, tpu:v5p:2x2x2, tpu:v6e:4x4, gpu:a100-80gb:4, gpu:h100:8, cpu:8 and their like."""
    search: bool = True
    """Search the largest batch that fits, with and without recomputation; takes several compilations."""
    overrides: Overrides = field(default_factory=dict)

    def run(self) -> int:
        """Plans."""
        config = load(self.config, self.overrides, "plan")
        from selecttkd_jax import planning

        return 0 if planning.plan(config, self.target, search=self.search) else 1
