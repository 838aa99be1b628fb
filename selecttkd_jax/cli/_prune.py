"""`selecttkd prune`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.cli._arguments import Directory, Model


@dataclass(frozen=True)
class Prune:
    """Keep some layers of a model and everything else: a student that starts close to its teacher."""

    model: Model
    """Model directory or hub name."""
    directory: Directory
    """Where to write. An existing model directory is replaced once the new one is complete."""
    keep: Annotated[int | None, tyro.conf.arg(metavar="COUNT")] = None
    """How many layers to keep, at even distances, the first and the last among them."""
    layers: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="L0 L1 ...")] = None
    """Which layers to keep, counted from 0 (instead of --keep)."""

    def run(self) -> int:
        """Prunes."""
        from selecttkd_jax import models

        if (self.keep is None) == (self.layers is None):
            raise InputError("give either --keep COUNT or --layers L0 L1 ...")
        models.check_replaceable(self.directory)
        if expand_home(self.directory).resolve() == expand_home(self.model).resolve():
            raise InputError(f"{self.directory} is the model itself; name another directory for the pruned one")
        config, _ = models.read_config(self.model)
        layers = self.layers or models.evenly_spaced_layers(config.num_layers, self.keep or 0)
        pruned = models.prune_layers(models.from_pretrained(self.model), layers)
        models.save_pretrained(self.directory, pruned, card=models.pruned_card(self.model, layers, config.num_layers))
        print(
            f"{self.directory}: layers {', '.join(map(str, layers))} of {config.num_layers}, "
            f"{models.count_params(pruned.params) / 1e6:.1f} M parameters"
        )
        return 0
