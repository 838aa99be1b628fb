"""DistiLLM-2: one divergence on the teacher's text, another on the student's."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

from selecttkd_jax import losses
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import BALANCES, Balance, Objective, ObjectiveConfig, TwoStreamObjective
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.sources import Role, StoredPairs
from selecttkd_jax.training import Method

_DIVERGENCES = ("skew_kl", "skew_reverse_kl")


@dataclass(frozen=True)
class DistiLlm2:
    """Contrastive distillation: pulled towards what the teacher writes, pushed from what only the student would.

        y_t ~ p(. | x),  y_s ~ q(. | x)
        loss = 2 (1 - b) V SKL(p, q) on y_t + 2 b V SRKL(p, q) on y_s

    With pairs = "epoch" the text is that of the student which an epoch began with, as published, and stays in
    `rollouts/epoch-N.jsonl`, which `train` reads as contrastive records. `sources.AdaptiveAlpha` adapts the skew.

    Source: Ko et al., 2025, "DistiLLM-2"; SelecTKD supplement, Figure 5 for the four pairs of divergences. In the
    release b stays 1/2, alpha 0.1, and the mixture of SRKL is a constant in the gradient.
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[None] = None

    name: Literal["distillm2"] = "distillm2"
    """One divergence on the teacher's text, another on the student's."""
    on_teacher: str = "skew_kl"
    """The divergence on the teacher's responses: skew_kl or skew_reverse_kl."""
    on_student: str = "skew_reverse_kl"
    """The divergence on the student's responses: skew_kl or skew_reverse_kl."""
    detach_mixture: bool = True
    """Whether skew_reverse_kl's mixture is a constant in the gradient, as in the release."""
    balance: str = "fixed"
    """The student stream's share b: fixed (1/2), published (Algorithm 1 to the letter), smooth (as it seems meant) or
    released (1/2 to 3/4 by mid-training)."""
    adaptive_alpha: str = "off"
    """off (objective.alpha throughout), published (one skew a batch, from the second of epochs on, by the mean gap of
    the first) or released (one a response, once reference_steps are over; never switched on in the release)."""
    reference_steps: int = 100
    """Steps over which adaptive_alpha = "released" averages its reference gap."""
    pairs: str = "step"
    """When both write: step (at each step) or epoch (for all its steps at once, into a file below `rollouts`)."""
    epochs: int = 1
    """Rounds into which the run's steps are divided: for pairs = "epoch", balance and adaptive_alpha."""
    teacher_text: str = "written"
    """written (by the teacher) or stored (the data's responses are its answers already)."""
    student_text: str = "written"
    """written (by the student) or stored (the data's student_response, beside a stored teacher_response)."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95, max_new_tokens=256))
    """How both write."""

    def __post_init__(self) -> None:
        check_one_of("method.on_teacher", self.on_teacher, _DIVERGENCES)
        check_one_of("method.on_student", self.on_student, _DIVERGENCES)
        check_one_of("method.balance", self.balance, BALANCES)
        check_one_of("method.pairs", self.pairs, ("step", "epoch"))
        check_one_of("method.teacher_text", self.teacher_text, ("written", "stored"))
        check_one_of("method.student_text", self.student_text, ("written", "stored"))
        if self.student_text == "stored" and (self.teacher_text, self.pairs) != ("stored", "step"):
            raise InputError('method.student_text = "stored" needs teacher_text = "stored" and pairs = "step"')
        check_one_of("method.adaptive_alpha", self.adaptive_alpha, ("off", "published", "released"))
        check_at_least("method.reference_steps", self.reference_steps, 1)
        check_at_least("method.epochs", self.epochs, 1)
        if self.adaptive_alpha == "published" and self.epochs == 1:
            raise InputError('method.adaptive_alpha = "published" begins with the second epoch; set method.epochs')

    @property
    def writes(self) -> tuple[Role, ...]:
        """Both models, unless both answers are stored."""
        return () if self.student_text == "stored" else ("teacher", "student")

    @property
    def reads(self) -> tuple[ResponseName, ...]:
        """Stored responses, unless both models write theirs."""
        on_student: tuple[ResponseName, ...] = ("student_response",) if self.student_text == "stored" else ()
        return ("response", *on_student) if self.teacher_text == "stored" else ()

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        shared.check_by_token("distillm2")
        self.objective(shared)

    def objective(self, shared: ObjectiveConfig) -> TwoStreamObjective:
        """What is minimised."""
        if shared.divergence is not None:
            raise InputError("method distillm2 has two divergences: method.on_teacher and method.on_student, not one")
        return TwoStreamObjective(self._on(self.on_teacher, shared), self._on(self.on_student, shared))

    def _on(self, divergence: str, shared: ObjectiveConfig) -> Objective:
        objective = shared.build(divergence=divergence)
        if divergence == "skew_kl" or not self.detach_mixture:
            return objective
        alpha = 0.1 if shared.alpha is None else shared.alpha
        return replace(objective, divergence=partial(losses.skew_reverse_kl, alpha=alpha, detach_mixture=True))

    def build(self, parts: Parts) -> Method:
        """Stored prompts, answered by both."""
        epoch_steps = -(-parts.steps // self.epochs)
        if self.student_text == "stored":
            source = StoredPairs(parts.stored, parts.stored_student)
        else:
            steps = epoch_steps if self.pairs == "epoch" else None
            warn_of_old_text(self.on_student, (steps or 1) - 1)
            source = parts.pairs(self.sampling, teacher_writes=self.teacher_text == "written", epoch_steps=steps)
        if self.adaptive_alpha != "off":
            window = epoch_steps if self.adaptive_alpha == "published" else self.reference_steps
            source = parts.adapt_alpha(source, window=window, by_row=self.adaptive_alpha == "released")
        balance = Balance(self.balance, parts.steps, self.epochs)
        return Method(source=source, loss=parts.two_streams(self.objective(parts.objective), balance))
