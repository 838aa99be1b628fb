"""`selecttkd push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import Flag


@dataclass(frozen=True)
class Push:
    """Upload a run's student, or a model directory, to the Hugging Face hub.

    The token is huggingface_hub's own, from `hf auth login` or HF_TOKEN. Only a model's files go.
    """

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIRECTORY")]
    """A run's directory, or that of a model or an adapter."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Repository on the hub: owner/name. It is made where there is none."""
    public: Flag = False
    """Make a new repository that everybody sees. Left out: a private one."""
    adapter: Flag = False
    """Of a run, upload its adapters instead of the student."""
    message: str = ""
    """Of the commit. Left out: which version uploaded it."""

    def run(self) -> int:
        """Uploads, and prints the address."""
        from selecttkd_jax import runs

        print(runs.push(self.directory, self.name, public=self.public, adapter=self.adapter, message=self.message))
        return 0
