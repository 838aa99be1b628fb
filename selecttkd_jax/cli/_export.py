"""`selecttkd export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import RunDirectory


@dataclass(frozen=True)
class Export:
    """Write the student of a checkpoint as a Hugging Face directory, also while the run goes on.

    It is what the end of training writes: float32 weights with adapters merged, tokenizer files, a model card.
    """

    run_directory: RunDirectory
    """The run's directory."""
    directory: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")] = None
    """Where to write; a run with [lora] writes its adapters beside it, to DIRECTORY-adapter. Left out:
    RUN/exports/step-N."""
    step: int | None = None
    """Of the checkpoint. Left out: the newest."""

    def run(self) -> int:
        """Exports."""
        from selecttkd_jax import runs

        student, adapter = runs.export_checkpoint(runs.open_run(self.run_directory), self.step, self.directory)
        print(f"student  {student}")
        if adapter is not None:
            print(f"adapter  {adapter}")
        return 0
