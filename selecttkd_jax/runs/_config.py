"""A run's configuration: the rooms' own configs, composed and checked against each other."""

import dataclasses
from dataclasses import dataclass, field

from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.data import DataConfig
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.methods import TOGETHER, ImitKd, Kd, MethodConfig, takes_budget
from selecttkd_jax.models import ATTENTIONS, REMATS, LoraConfig
from selecttkd_jax.runs._sections import check_numbers
from selecttkd_jax.selection import SelectionConfig
from selecttkd_jax.sharding import MeshConfig
from selecttkd_jax.sources import EngineConfig
from selecttkd_jax.training import LoopConfig, OptimizerConfig

DTYPES = ("float32", "bfloat16", "float16")
TEACHER_DTYPES = (*DTYPES, "int8")


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Teacher and student, each a Hugging Face directory or hub name."""

    teacher: str | None = None
    """The frozen teacher. May be left out where the method needs none."""
    student: str
    """Where the student starts: a smaller model of the same tokenizer, or a pruned teacher."""
    teacher_dtype: str = "auto"
    """In which the teacher's weights are kept. int8 halves bfloat16's memory: the layers' kernels are stored in int8
    with a scale for each column and the rest in compute_dtype, and the log says how far (KL on the held-out rows) that
    teacher is from the unquantised one. auto: compute_dtype's."""
    student_dtype: str = "float32"
    """In which the student's frozen weights are kept under [lora]. Trained weights are always float32."""
    compute_dtype: str = "auto"
    """In which both models compute; the student's master weights, and all statistics, stay float32. auto: bfloat16, and
    float32 on a CPU, where bfloat16 is slower; the run's config.toml says which."""
    attention: str = "auto"
    """How attention is computed in training and evaluation: by plain products (xla), which write out scores of
    max_length^2 a head, or by NVIDIA's fused kernel (cudnn) or a TPU's (splash), which do not. auto: the platform's
    kernel with a 16-bit compute_dtype and shapes it takes, else xla; the log says which and why."""
    remat: str = "kept"
    """What the student's backward pass keeps of each layer and does not recompute: everything (none), the results of
    the large products (kept), the same in the host's memory (offload), or nothing (full), which takes about a third
    more time and the least memory of a device."""

    def __post_init__(self) -> None:
        check_one_of("models.teacher_dtype", self.teacher_dtype, ("auto", *TEACHER_DTYPES))
        check_one_of("models.student_dtype", self.student_dtype, DTYPES)
        check_one_of("models.compute_dtype", self.compute_dtype, ("auto", *DTYPES))
        check_one_of("models.attention", self.attention, ("auto", *ATTENTIONS))
        check_one_of("models.remat", self.remat, REMATS)


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go besides metrics.jsonl and metrics.csv. TensorBoard files are written when it is installed."""

    wandb_project: str | None = None
    """Weights & Biases project. Left out: none."""
    samples_every: int | None = None
    """Steps between looks at what a model writes during training: some of it with its rejected tokens marked, in the
    log and in samples.jsonl, and its acceptance by position. Left out: training.eval_every."""

    def __post_init__(self) -> None:
        if self.samples_every is not None:
            check_at_least("logging.samples_every", self.samples_every, 1)


@dataclass(frozen=True)
class RunConfig:
    """A training run."""

    models: ModelsConfig
    data: DataConfig
    output: str
    """The run's directory. If it holds this very run, the run resumes."""
    seed: int = 0
    """Of the data order and of every random draw, from 0 to 2^32 - 1."""
    method: MethodConfig = field(default_factory=Kd)
    """How the student learns: `name` picks the method, whose options stand beside it."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    selection: SelectionConfig | None = None
    """A budget of tokens in place of a verifier. Left out: none."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: LoopConfig = field(default_factory=LoopConfig)
    lora: LoraConfig | None = None
    """Adapters to train instead of the student's weights. Left out: all weights are trained."""
    engine: EngineConfig | None = None
    """A server that writes the student's text. Left out: the devices of the run write it."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in [0, 2**32), got {self.seed}")
        if self.method.needs_teacher and self.models.teacher is None:
            raise InputError(
                f"models.teacher is missing: method {self.method.name} learns from one; name a model directory or a "
                "hub model"
            )
        self.method.check(self.objective)
        if (packing := str(self.data.packing).lower()) in ("true", "false"):
            packing = "off" if packing == "false" else "sequences" if self.reads_one_stream() else "rows"
            object.__setattr__(self, "data", dataclasses.replace(self.data, packing=packing))
        self._check_selection()
        if self.engine is not None and ("student" not in self.method.writes or isinstance(self.method, TOGETHER)):
            why = "both models write together" if "student" in self.method.writes else "the student writes nothing"
            raise InputError(
                f"[engine] is a server that writes the student's text, and under method {self.method.name} {why}: "
                "leave it out"
            )
        if self.lora is None and self.models.student_dtype != "float32":
            raise InputError(
                f"models.student_dtype = {self.models.student_dtype} is for frozen weights; without a [lora] section "
                "all weights are trained, in float32"
            )
        if self.data.packing == "sequences" and not self.reads_one_stream():
            raise InputError(
                f"data.packing = sequences fills them from the data's responses before a run begins, and method "
                f"{self.method.name} learns from more than those: take rows"
            )
        if self.data.batch_size % self.training.micro_batches:
            raise InputError(
                f"training.micro_batches must divide data.batch_size, {self.data.batch_size}; "
                f"got {self.training.micro_batches}"
            )

    def _check_selection(self) -> None:
        """Raises InputError where a budget of tokens does not go with the rest, or nothing rejects any."""
        if self.selection is None:
            if self.objective.rejected is not None and self.objective.verifier == "accept_all":
                raise InputError(
                    "objective.rejected is the divergence of rejected tokens, and accept_all rejects none; choose "
                    "another objective.verifier, or a budget of tokens, [selection]"
                )
            return
        if not takes_budget(self.method):
            raise InputError(
                f"[selection] ranks the tokens of one stream that a divergence teaches, and method {self.method.name} "
                "has none; choose another method, such as kd"
            )
        if self.objective.verifier != "accept_all":
            raise InputError(
                f"[selection] says which tokens count, and so does objective.verifier {self.objective.verifier}; "
                "set it to accept_all, or leave [selection] out"
            )
        if self.selection.reads_labels and isinstance(self.method, ImitKd):
            self.method.check_readers([f"selection.score {self.selection.score}"])
        if self.selection.per_sequence and self.data.packing not in ("auto", "off"):
            raise InputError(
                "selection.per_sequence ranks each row, and with data.packing a row holds several sequences; leave one "
                "of them out"
            )

    def reads_one_stream(self) -> bool:
        """Whether the method learns from nothing but the data's responses: they can be packed before a run begins."""
        return not self.method.writes and self.method.reads == ("response",)

    def on_platform(self, platform: str) -> "RunConfig":
        """The same run, with what was left to the machine written out: the dtypes.

        Raises:
            InputError: An option is not for this platform.
        """
        if self.models.remat == "offload" and platform == "cpu":
            raise InputError(
                "models.remat = offload moves activations from a device's memory to the host's, and a CPU has one "
                "memory; take kept or full"
            )
        compute = self.models.compute_dtype
        if compute == "auto":
            compute = "float32" if platform == "cpu" else "bfloat16"
        teacher = compute if self.models.teacher_dtype == "auto" else self.models.teacher_dtype
        models = dataclasses.replace(self.models, compute_dtype=compute, teacher_dtype=teacher)
        return dataclasses.replace(self, models=models)

    def resolved(self) -> "RunConfig":
        """The same run, with what was left to the method written out."""
        if self.objective.divergence is not None or self.method.divergence is None:
            return self
        objective = dataclasses.replace(self.objective, divergence=self.method.divergence)
        return dataclasses.replace(self, objective=objective)
