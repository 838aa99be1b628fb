"""`selecttkd completion`."""

import contextlib
import io
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from selecttkd_jax.cli._commands import COMMANDS, command_class


@dataclass(frozen=True)
class Completion:
    """Print a script with which a shell completes commands and options.

    bash: selecttkd completion bash > ~/.local/share/bash-completion/completions/selecttkd; zsh: the same with zsh and a
    file _selecttkd in a directory of $fpath.
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Which one."""

    def run(self) -> int:
        """Prints."""
        commands = {name: command_class(name) for name in COMMANDS}
        script = io.StringIO()
        with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="selecttkd",
                args=["--tyro-write-completion", self.shell, "-"],
                config=(tyro.conf.AvoidSubcommands,),
            )
        print(script.getvalue(), end="")
        return 0
