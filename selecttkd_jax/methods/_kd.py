"""Knowledge distillation on stored responses, vanilla or selective."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import Objective, ObjectiveConfig
from selecttkd_jax.methods._parts import Parts
from selecttkd_jax.training import Method


@dataclass(frozen=True)
class Kd:
    """Distillation on stored responses, which the teacher or anybody else may have written.

        loss = (1 - r) V D(p, q) + r (-log q(y))

    at each response token y, with the weight V and the divergence D of [objective], forward KL where it names none.
    With `verifier = "accept_all"` every V is 1: vanilla distillation.

    Source: Hinton et al., 2015, "Distilling the Knowledge in a Neural Network"; SelecTKD supplement, section A.
    """

    needs_teacher: ClassVar[bool] = True
    divergence: ClassVar[str] = "forward_kl"
    reads: ClassVar[tuple[ResponseName, ...]] = ("response",)
    writes: ClassVar[tuple[()]] = ()
    sampling: ClassVar[None] = None

    name: Literal["kd"] = "kd"
    """Distillation on stored responses."""
    label_share: float = 0.0
    """The share r of the cross-entropy on the response itself, in [0, 1]; no verifier weighs it."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_share <= 1:
            raise InputError(f"method.label_share must be in [0, 1], got {self.label_share}")

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] does not go with the method."""
        if self.label_share > 0 and shared.normalizer == "weight":
            raise InputError(
                f"method.label_share = {self.label_share} is weighed by no verifier, so objective.normalizer cannot be "
                'weight; choose "sequence" or "token"'
            )
        self.objective(shared)

    def objective(self, shared: ObjectiveConfig) -> Objective:
        """What is minimised."""
        return shared.build(divergence=self.divergence, label_share=self.label_share)

    def build(self, parts: Parts) -> Method:
        """Stored rows, one stream."""
        return Method(source=parts.stored, loss=parts.one_stream(self.objective(parts.objective)))
