"""`selecttkd generate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from selecttkd_jax._errors import InputError
from selecttkd_jax.cli._arguments import Dtype, HostOptions, Model, SeveralHosts, Table

if TYPE_CHECKING:  # they would import JAX, which a mistyped command does not need
    from selecttkd_jax.data import Record
    from selecttkd_jax.generation import Sampling


@dataclass(frozen=True)
class Devices:
    """How devices are arranged; -1 on one axis takes those that are left."""

    data: int = 1
    """Devices over which the slots are sharded, each with all the weights."""
    fsdp: int = 1
    """The same: in decoding, weights are not gathered layer by layer."""
    tensor: int = 1
    """Devices over which heads, MLPs, the vocabulary and the cache are sharded."""


@dataclass(frozen=True)
class Generate:
    """Let a model answer prompts, from the command line or a JSONL file."""

    model: Model
    """Model directory or hub name; of a server, the name that it has there."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = ()
    """Prompts; each is put through the model's chat template."""
    file: Path | None = None
    """JSONL file with a `prompt` per line, instead."""
    output: Path | None = None
    """JSONL file to append {prompt, completion, finish} rows to, one as each answer comes; an interrupted one is
    continued. Left out: print."""
    max_new_tokens: int = 256
    """Longest response."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together hold this probability."""
    top_k: int | None = None
    """Sample from this many most likely tokens. Left out: all."""
    min_p: float = 0.0
    """Sample from tokens at least this share as likely as the most likely one."""
    slots: int | None = None
    """Answers written at a time; they change none of them. Left out: as many as the memory has room for."""
    seed: int = 0
    """Of the draws."""
    template: Literal["chat", "plain"] = "chat"
    """Chat template, or the prompt as it is."""
    template_kwargs: Table = field(default_factory=dict)
    """Options of the chat template, for example: enable_thinking=false."""
    date: str | None = None
    """What a chat template that writes today's date is told, as year-month-day. Left out: as in training."""
    dtype: Dtype | None = None
    """In which the model computes. Left out: bfloat16, and float32 on a CPU."""
    mesh: Devices = field(default_factory=Devices)
    hosts: SeveralHosts = HostOptions()
    server: str | None = None
    """Address of a server that speaks OpenAI's HTTP interface and answers instead, for example:
    http://127.0.0.1:8000/v1."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key. Left out: none is sent."""
    concurrency: int = 8
    """Requests to the server at a time."""

    def run(self) -> int:
        """Generates."""
        from selecttkd_jax import data
        from selecttkd_jax.generation import Sampling

        self._check_files()
        sampling = Sampling(
            self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_new_tokens=self.max_new_tokens,
        )
        if self.file is None:
            records = [data.Record(({"role": "user", "content": prompt},)) for prompt in self.prompts]
        else:
            records = data.read_records(self.file)
        answers = self._generate(records, sampling) if self.server is None else self._ask(records, sampling)
        if self.output is None and answers:
            for record, answer in zip(records, answers, strict=True):
                if len(records) > 1:
                    print(f"--- {record.prompt[-1]['content']}")
                print(answer)
        return 0

    def _generate(self, records: "list[Record]", sampling: "Sampling") -> list[str]:
        from selecttkd_jax import data, runs
        from selecttkd_jax.sharding import MeshConfig

        self.hosts.join(MeshConfig.host_timeout)
        return runs.generate(
            self.model,
            records,
            sampling,
            self.output,
            slots=self.slots,
            seed=self.seed,
            template=self.template,
            template_kwargs=self.template_kwargs,
            date=self.date or data.RUN_DATE,
            dtype=self.dtype,
            mesh=MeshConfig(data=self.mesh.data, fsdp=self.mesh.fsdp, tensor=self.mesh.tensor),
        )

    def _ask(self, records: "list[Record]", sampling: "Sampling") -> list[str]:
        from selecttkd_jax import runs
        from selecttkd_jax.generation import Server

        assert self.server is not None
        for option in ("slots", "dtype", "date"):
            if getattr(self, option) is not None:
                raise InputError(f"--{option} is for models that run here; leave it out with --server")
        if self.mesh != Devices() or self.hosts != HostOptions():
            raise InputError("--mesh and several processes are for models that run here; leave them out with --server")
        server = Server(self.server, self.model, key_variable=self.key_variable, concurrency=self.concurrency)
        return runs.generate_from_server(
            server,
            records,
            sampling,
            self.output,
            seed=self.seed,
            template=self.template,
            template_kwargs=self.template_kwargs,
        )

    def _check_files(self) -> None:
        """Before a model is read: what to ask, and where the answers go."""
        if bool(self.prompts) == (self.file is not None):
            raise InputError("give either prompts or --file PROMPTS.jsonl")
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise InputError(f"{self.output.parent} is not a directory; name an existing one for {self.output.name}")
