"""DistiLLM: a skewed divergence, on stored text at first and on the student's own where that stops helping."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods._parts import Parts, check_pretraining, warn_of_old_text
from selecttkd_jax.sources import Replay, Role
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class DistiLlm:
    """Skewed KL with a replay buffer of the student's text and a threshold that adapts.

        loss = V SKL(p, q) at each token + b CE on a corpus,   SKL = KL(p || alpha p + (1 - alpha) q),   alpha = 0.1

    or the divergence of [objective], such as skew_reverse_kl; both mixtures carry a gradient here, as in its code. When
    the student writes is `sources.Replay`'s to say.

    There is no share of cross-entropy on labels: the release leaves it at 0, and above that it would teach the student
    its own samples.

    Source: Ko et al., 2024, "DistiLLM"; defaults of its code, but that b is 1 there, on OpenWebText.
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "skew_kl"
    writes: ClassVar[tuple[Role, ...]] = ("student",)

    name: Literal["distillm"] = "distillm"
    """Skewed KL with a replay buffer of the student's own responses."""
    threshold: float = 0.0
    """phi, with which text that is not stored is used; grows by 0.1 at an evaluation that did not improve."""
    tolerance: float = 0.1
    """By how much the held-out cross-entropy may rise before that, in nats."""
    capacity: int = 1000
    """Rows in the replay buffer."""
    max_age: int | None = None
    """Steps after which a row leaves the buffer. Left out: when newer ones take its place."""
    pretraining: float = 0.0
    """What cross-entropy on the corpus counts for (b); 0 leaves it out."""
    corpus: str | None = None
    """Rows of {"text"} that are pre-trained on: a file or data set. Left out: the data's own responses."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=256))
    """How the student writes."""

    def __post_init__(self) -> None:
        check_in_range("method.threshold", self.threshold, 0, 1)
        check_at_least("method.tolerance", self.tolerance, 0)
        check_at_least("method.capacity", self.capacity, 1)
        check_pretraining(self.pretraining, self.corpus)
        if self.max_age is not None:
            check_at_least("method.max_age", self.max_age, 1)

    @property
    def reads(self) -> tuple[ResponseName, ...]:
        """Stored responses, unless the threshold leaves none, nor are they pre-trained on."""
        learned = self.threshold < 1 or (self.pretraining > 0 and self.corpus is None)
        return ("response",) if learned else ()

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        if self.pretraining > 0 and shared.normalizer == "weight":
            raise InputError(
                "no verifier weighs the corpus, so under method.pretraining objective.normalizer cannot be weight; "
                'choose "sequence" or "token"'
            )
        shared.build(divergence=self.divergence)

    def build(self, parts: Parts) -> Method:
        """Stored rows, the student's own, and the buffer."""
        warn_of_old_text(parts.objective.divergence or self.divergence, self.max_age or parts.steps)
        source = Replay(
            parts.stored,
            parts.write("student", self.sampling),
            parts.mesh,
            steps=parts.steps,
            threshold=self.threshold,
            capacity=self.capacity,
            max_age=self.max_age,
            tolerance=self.tolerance,
        )
        loss = parts.one_stream(parts.objective.build(divergence=self.divergence))
        return parts.with_pretraining(Method(source=source, loss=loss), self.pretraining, label_share=1.0)
