"""Which commands there are, and the help of the program itself. Nothing here needs JAX or tyro."""

from importlib import import_module
from typing import Any

COMMANDS = {
    "convert": "a GGUF file to a Hugging Face directory",
    "prune": "keep some layers of a model: the student's start",
    "plan": "CONFIG.toml --target MACHINE: what a run needs of a machine, without the machine",
    "train": "CONFIG.toml|RUN [--section.field value ...]: distil, or resume the run that is there",
    "evaluate": "RUN [--student MODEL ...]: held-out KL, cross-entropy and acceptance rates of its student",
    "export": "RUN [DIRECTORY] [--step N]: a checkpoint to a Hugging Face directory",
    "report": "RUN [RUN ...]: one HTML file with settings, curves, samples and events",
    "compare": "RUN RUN ...: their held-out numbers, time and differing options side by side",
    "push": "RUN|DIRECTORY NAME: a student to the Hugging Face hub, private unless --public",
    "generate": "let a model answer prompts",
    "plot": "curves of a run",
    "completion": "a script with which bash or zsh completes commands and options",
}
"""What there is, in the order in which a first run uses it. `name` is the class Name in the file _name.py."""

GLOBAL_OPTIONS = {
    "--debug": "show the traceback of an error",
    "--quiet": "warnings only, and no progress bar",
    "--verbose": "more in the log, with times",
    "--version": "print the version",
    "--help": "print this; selecttkd COMMAND --help explains a command",
}
"""What may stand before the command."""


def command_class(name: str) -> Any:
    """The class of a command, which is imported when it is asked for."""
    return getattr(import_module(f"selecttkd_jax.cli._{name}"), name.capitalize())


def usage() -> str:
    """The help of the program itself."""
    commands = "\n".join(f"  {name:<12}{about}" for name, about in COMMANDS.items())
    options = "\n".join(f"  {name:<12}{about}" for name, about in GLOBAL_OPTIONS.items())
    return f"""\
usage: selecttkd [OPTIONS] COMMAND ...

Distil a language model into a smaller one, learning where the teacher accepts what the student proposes (SelecTKD).

commands, in the order in which a first run uses them:
{commands}

options, before the command:
{options}

Paths are relative to where the command runs.

On several hosts, each runs the same train, evaluate or generate command. SLURM, MPI, Kubernetes jobs, TPU pods and
torchrun are recognised; elsewhere say --coordinator HOST:PORT (of the first process), --num-processes N and
--process-id I.
"""
