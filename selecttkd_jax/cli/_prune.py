"""`selecttkd prune`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax.cli._arguments import Directory, Model

if TYPE_CHECKING:  # they would import JAX, which a mistyped command does not need
    from selecttkd_jax.models import Drop, Pretrained


@dataclass(frozen=True)
class Prune:
    """Keep some layers of a model and everything else: a student that starts close to its teacher.

    Which layers go matters more than how many (docs/pruning.md). All rules but `even` look at calibration rows.
    """

    model: Model
    """Model directory or hub name."""
    directory: Directory
    """Where to write. An existing model directory is replaced once the new one is complete."""
    keep: Annotated[int | None, tyro.conf.arg(metavar="COUNT")] = None
    """How many layers to keep."""
    by: Literal["even", "block", "influence", "kl"] = "even"
    """Which of them: at even distances, the first and the last among them (even); all but the neighbouring ones that
    are missed least (block), or but those of least influence, 1 - cos(in, out) (influence); or greedily, dropping the
    one whose loss raises KL(full || pruned) least, again and again (kl)."""
    calibration: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Rows with responses to measure on, in the forms of [data] train: best some of the student's training rows."""
    rows: int = 8
    """How many rows of the file to measure on, from its beginning."""
    columns: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None
    """Names of the prompt and response columns in raw data, for example: question answer."""
    template: Literal["chat", "plain"] = "chat"
    """Chat template, or prompt + response as they are."""
    max_length: int = 256
    """Tokens of a row that are looked at, prompt included."""
    layers: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="L0 L1 ...")] = None
    """Which layers to keep, counted from 0 (instead of --keep)."""

    def run(self) -> int:
        """Prunes."""
        from selecttkd_jax import models

        if (self.keep is None) == (self.layers is None):
            raise InputError("give either --keep COUNT or --layers L0 L1 ...")
        if self.by != "even" and self.layers is not None:
            raise InputError(f"--layers says which layers to keep, and --by {self.by} would choose; leave one out")
        if self.by != "even" and self.calibration is None:
            raise InputError(f"--by {self.by} measures on rows: give --calibration FILE, rows with responses")
        if self.by == "even" and self.calibration is not None:
            raise InputError("--calibration is looked at by --by block, influence and kl; name one of them")
        check_at_least("--rows", self.rows, 1)
        models.check_replaceable(self.directory)
        if expand_home(self.directory).resolve() == expand_home(self.model).resolve():
            raise InputError(f"{self.directory} is the model itself; name another directory for the pruned one")
        config, _ = models.read_config(self.model)
        if self.keep is not None:
            models.check_keep_count(config.num_layers, self.keep)
        pretrained = models.from_pretrained(self.model)
        layers = self.layers or self._choose(pretrained)
        pruned = models.prune_layers(pretrained, layers)
        models.save_pretrained(self.directory, pruned, card=models.pruned_card(self.model, layers, config.num_layers))
        print(
            f"{self.directory}: layers {', '.join(map(str, layers))} of {config.num_layers}, "
            f"{models.count_params(pruned.params) / 1e6:.1f} M parameters"
        )
        return 0

    def _choose(self, pretrained: "Pretrained") -> tuple[int, ...]:
        from selecttkd_jax import data, runs

        assert self.keep is not None
        rows, vocab_size = None, None
        if self.calibration is not None:
            config = data.DataConfig(
                self.calibration, columns=self.columns, template=self.template, max_length=self.max_length
            )
            rows, vocab_size = runs.read_calibration(config, self.model, self.rows)
        choice = runs.choose_layers(pretrained, self.keep, self.by, rows, vocab_size=vocab_size, on_drop=self._tell)
        return choice.layers

    def _tell(self, drop: "Drop") -> None:
        """One line a drop, on standard output as it is decided."""
        named = f"layer {drop.layers[0]}" if len(drop.layers) == 1 else f"layers {drop.layers[0]}-{drop.layers[-1]}"
        cost = f"influence {drop.cost:.4f}" if self.by == "influence" else f"KL(full || pruned) {drop.cost:.3f} nats"
        print(f"without {named:<12} {cost}", flush=True)
