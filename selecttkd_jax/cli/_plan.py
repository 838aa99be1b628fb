"""`selecttkd plan`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import ConfigFile
from selecttkd_jax.cli._overrides import Overrides, load


@dataclass(frozen=True)
class Plan:
    """Compile the training step of CONFIG.toml for a machine that is not here, and print what it needs and how long.

    Of the models, config.json is enough. An option of the configuration is --section.field value. The exit code is 1
    where the step does not fit.
    """

    config: ConfigFile
    """A configuration file in TOML."""
    target: Annotated[str, tyro.conf.arg(metavar="MACHINE")]
    """tpu:v5e:4x4, tpu:v5p:2x2x2, tpu:v6e:4x4, gpu:a100-80gb:4, gpu:h100:8, gpu:b200:8, cpu:8 and their like."""
    search: bool = True
    """Search the largest batch that fits, with and without recomputation; takes several compilations."""
    fill: float | None = None
    """The share of a batch that is no padding, such as 0.4: tells what the rest costs, and what data.packing saves."""
    generate: bool = False
    """Plan the writing of text, too: by the models that write in the run's method, or by the teacher."""
    price_per_hour: float | None = None
    """What an hour of one device costs: tells what the run does."""
    overrides: Overrides = field(default_factory=dict)

    def run(self) -> int:
        """Plans."""
        config = load(self.config, self.overrides, "plan")
        from selecttkd_jax import planning

        options = {"search": self.search, "fill": self.fill, "write": self.generate, "price": self.price_per_hour}
        return 0 if planning.plan(config, self.target, **options) else 1
