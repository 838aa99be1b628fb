"""The methods, a page each: a frozen dataclass of a method's own options, and how it is built from a run's parts.

A method says whether it needs a teacher, which divergence it takes where [objective] names none (None: no objective at
all), which of a record's responses it learns from (`reads`), who writes text for it and how (`writes`, `sampling`) and
which shared options do not go with it (`check`), and puts a source and a loss together (`build`). Options that methods
share (verifier, k, floor, temperature, normaliser) are those of `distill.ObjectiveConfig`. To add a method, write its
page and name it here; nothing else has to know it.
"""

from selecttkd_jax.methods._distillm import DistiLlm
from selecttkd_jax.methods._distillm2 import DistiLlm2
from selecttkd_jax.methods._gkd import Gkd
from selecttkd_jax.methods._imitkd import ImitKd
from selecttkd_jax.methods._kd import Kd
from selecttkd_jax.methods._minillm import MiniLlm
from selecttkd_jax.methods._on_policy import OnPolicyKd
from selecttkd_jax.methods._parts import Parts, warn_of_old_text
from selecttkd_jax.methods._seqkd import SeqKd
from selecttkd_jax.methods._sft import Sft
from selecttkd_jax.methods._speculative_kd import SpeculativeKd

MethodConfig = Kd | Sft | SeqKd | ImitKd | Gkd | SpeculativeKd | OnPolicyKd | DistiLlm | DistiLlm2 | MiniLlm
"""What `[method]` may be; its `name` says which."""
METHODS: dict[str, type[MethodConfig]] = {
    kind.name: kind for kind in (Kd, Sft, SeqKd, ImitKd, Gkd, SpeculativeKd, OnPolicyKd, DistiLlm, DistiLlm2, MiniLlm)
}
"""Methods by name."""
TOGETHER = (SpeculativeKd, MiniLlm)
"""Methods whose text both models write together, token by token: no server does."""


def takes_budget(method: MethodConfig) -> bool:
    """Whether a budget of tokens goes with a method: it learns from one stream, by an objective."""
    if isinstance(method, SeqKd):
        return method.learn_from == "logits"
    return not isinstance(method, Sft | DistiLlm2 | MiniLlm)


__all__ = [
    "METHODS",
    "TOGETHER",
    "DistiLlm",
    "DistiLlm2",
    "Gkd",
    "ImitKd",
    "Kd",
    "MethodConfig",
    "MiniLlm",
    "OnPolicyKd",
    "Parts",
    "SeqKd",
    "Sft",
    "SpeculativeKd",
    "takes_budget",
    "warn_of_old_text",
]
