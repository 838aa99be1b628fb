"""The command line: a file a command. `selecttkd --help` answers without JAX and without tyro."""

from selecttkd_jax.cli._commands import COMMANDS
from selecttkd_jax.cli._main import main

__all__ = ["COMMANDS", "main"]
