"""Imitation: prefixes move from the data's to the student's own as training goes on."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import Objective, ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.losses import hard_cross_entropy
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.sources import Role
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class ImitKd:
    """Distillation on prefixes that come from the data with a falling probability, and else from the student.

        with probability B^(-step / steps):  the stored y,   otherwise  y ~ q(. | x),   row by row
        labels = "full":  loss = V D(p, q) at each token of y
        labels = "hard":  loss = V (-log q(y)) on the stored y,   V (-log q(argmax p)) on the student's

    so that training begins on the data and ends with a share 1 - 1/B of the student's own text. "hard" is ImitKD
    proper; "full" labels every prefix with the teacher's whole distribution, as the configurations of that name in the
    paper's code do. ImitKD* is this method on text that the teacher wrote: `selecttkd generate` with the teacher makes
    its data. V is the verifier's under either rule.

    Source: Lin et al., 2020, "Autoregressive Knowledge Distillation through Imitation Learning"; B = 200 for
    translation, 10 for summaries and 2 for ImitKD* in its code, which samples four batches at a time.
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "forward_kl"
    reads: ClassVar[tuple[ResponseName, ...]] = ("response",)
    writes: ClassVar[tuple[Role, ...]] = ("student",)

    name: Literal["imitkd"] = "imitkd"
    """Distillation on prefixes that move from the data's to the student's own."""
    decay: float = 200.0
    """B, at least 1: the data's share falls from 1 to 1/B."""
    labels: str = "full"
    """full (the divergence of [objective] on every prefix) or hard (cross-entropy: the data's tokens on its own
    prefixes, the teacher's first choice on the student's)."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=128))
    """How the student writes."""
    rollout_steps: int = 1
    """Steps whose responses are written at once, so that the weights which wrote the last are n - 1 steps old."""

    def __post_init__(self) -> None:
        check_at_least("method.rollout_steps", self.rollout_steps, 1)
        check_one_of("method.labels", self.labels, ("full", "hard"))
        if not self.decay >= 1:
            raise InputError(f"method.decay must be at least 1, got {self.decay}")

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        if self.labels == "hard" and shared.divergence not in (None, self.divergence):
            raise InputError('objective.divergence needs method.labels = "full"')
        self.check_readers(shared.label_readers)
        self.objective(shared)

    def check_readers(self, readers: list[str]) -> None:
        """Raises InputError where an option, of those that look at the labels, would find none on the student's text.

        The hard rule hides them: its cross-entropy is to take the teacher's first choice there.
        """
        if self.labels == "hard" and readers:
            raise InputError(
                f'{readers[0]} reads the labels, which method.labels = "hard" takes from the text that the student '
                'writes; choose one that looks at the models alone, or method.labels = "full"'
            )

    def objective(self, shared: ObjectiveConfig) -> Objective:
        """What is minimised."""
        objective = shared.build(divergence=self.divergence)
        return replace(objective, divergence=hard_cross_entropy) if self.labels == "hard" else objective

    def build(self, parts: Parts) -> Method:
        """Stored rows, more and more of them written anew."""

        def student_share(step: int) -> float:
            return 1.0 - self.decay ** (-step / parts.steps)

        warn_of_old_text(parts.objective.divergence or self.divergence, self.rollout_steps - 1)
        source = parts.on_policy(
            "student",
            self.sampling,
            self.rollout_steps,
            student_share,
            by_row=True,
            keep_labels=self.labels == "full",
        )
        return Method(source=source, loss=parts.one_stream(self.objective(parts.objective)))
