"""Supervised fine-tuning: where the students of most papers start."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import ResponseName
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.methods._parts import Parts
from selecttkd_jax.training import LabelCrossEntropy, Method


@dataclass(frozen=True)
class Sft:
    """Cross-entropy on the response. No teacher takes part; one that is named is only compared with.

        loss = -log q(y)

    at each response token y. Of [objective] only the normaliser applies.
    """

    needs_teacher: ClassVar[bool] = False
    divergence: ClassVar[None] = None
    reads: ClassVar[tuple[ResponseName, ...]] = ("response",)
    writes: ClassVar[tuple[()]] = ()
    sampling: ClassVar[None] = None

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning on stored responses."""

    def check(self, shared: ObjectiveConfig) -> None:
        """Raises InputError where [objective] asks for what fine-tuning has no use for."""
        check_unused("sft", shared)

    def build(self, parts: Parts) -> Method:
        """Stored rows, the student alone."""
        loss = LabelCrossEntropy(
            parts.pair, parts.objective.normalizer, memory_budget=parts.memory_budget, packed=parts.packed
        )
        return Method(source=parts.stored, loss=loss)


def check_unused(method: str, shared: ObjectiveConfig, **used: Any) -> None:
    """Raises InputError where [objective] has options that a cross-entropy on labels has no use for."""
    default = ObjectiveConfig(normalizer=shared.normalizer, **used)
    names = [one.name for one in fields(shared) if getattr(shared, one.name) != getattr(default, one.name)]
    if names:
        unused = ", ".join(f"objective.{name}" for name in names)
        raise InputError(f"method {method} learns from the text alone and has no use for {unused}; leave it out")
