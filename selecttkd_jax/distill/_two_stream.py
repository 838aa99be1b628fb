"""Two response streams: one divergence on the teacher's responses, another on the student's (DistiLLM-2).

    loss = 2 (1 - balance) L_teacher + 2 balance L_student

where each L is an `Objective`'s mean over its own stream, and both streams count the same: under the "sequence"
normaliser, complete pairs of responses. At balance 1/2 this is the sum of the two, DistiLLM-2's released form;
`balance` is the paper's beta, half the released code's b, and may change from step to step.

Sums have to add up over micro-batches and devices, so both streams share one divisor, the mean of their counts n:

    loss = (2 (1 - balance) n_teacher L_teacher + 2 balance n_student L_student) / ((n_teacher + n_student) / 2)

Under "token" and "weight" a stream of longer responses or more accepted tokens thus counts for more.

The four pairs of the supplement's Figure 5, teacher stream first: SKL+SKL, SRKL+SRKL, SKL+SRKL (DistiLLM-2), SRKL+SKL.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Logits, Scalar
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill._inputs import Tokens
from selecttkd_jax.distill._objective import Objective
from selecttkd_jax.distill._sums import LossSums, mean_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stream:
    """What an objective needs of the responses of one model."""

    student_logits: Logits
    teacher_logits: Logits
    tokens: Tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TwoStreamSums:
    """Sums of both streams. Add them up over batches, then divide `loss` by `count`."""

    loss: Scalar
    count: Scalar
    teacher_responses: LossSums
    student_responses: LossSums

    @property
    def mean(self) -> Scalar:
        """`loss / count`, and 0 where nothing was counted."""
        return mean_of(self.loss, self.count)

    def means(self) -> dict[str, float]:
        """As `LossSums.means` over both streams, and each stream's own below `teacher_responses/` and the like."""
        both = (self.teacher_responses + self.student_responses).means()
        streams = {"teacher_responses": self.teacher_responses, "student_responses": self.student_responses}
        own = {f"{name}/{key}": value for name, sums in streams.items() for key, value in sums.means().items()}
        return both | {"loss": float(self.loss) / float(self.count) if self.count else 0.0} | own

    def __add__(self, other: "TwoStreamSums") -> "TwoStreamSums":
        return jax.tree.map(jnp.add, self, other)


@dataclass(frozen=True)
class TwoStreamObjective:
    """An objective for each response stream. Frozen, hashable and comparable by value, like its two parts.

    Attributes:
        teacher_responses: The objective on responses the teacher wrote; SKL in DistiLLM-2.
        student_responses: The objective on responses the student wrote; SRKL in DistiLLM-2.

    Source: Ko et al., 2025, "DistiLLM-2", Eq. 2 and 5; SelecTKD supplement, Figure 5.
    """

    teacher_responses: Objective
    student_responses: Objective

    def __post_init__(self):
        for name in ("teacher_responses", "student_responses"):
            if not isinstance(getattr(self, name), Objective):
                raise TypeError(f"{name} must be an Objective, got {getattr(self, name)!r}")
        normalizers = self.teacher_responses.normalizer, self.student_responses.normalizer
        if normalizers[0] != normalizers[1]:
            raise InputError(f"both streams must use the same normalizer, got {normalizers[0]} and {normalizers[1]}")

    def __call__(
        self,
        teacher_responses: Stream,
        student_responses: Stream,
        *,
        balance: float | Scalar = 0.5,
    ) -> TwoStreamSums:
        """Sums both objectives; the loss of the batch is `sums.loss / sums.count`.

            loss  = 2 (1 - balance) loss_teacher + 2 balance loss_student
            count = (count_teacher + count_student) / 2

        With the "sequence" normaliser and complete pairs the count is the number of pairs, and each stream is its mean.

        Args:
            teacher_responses: Logits and masks on the teacher's responses.
            student_responses: The same on the student's responses.
            balance: The student stream's share, in [0, 1]; 1/2 adds the two streams up. See `distill.balance_*`.

        Returns:
            TwoStreamSums, differentiable to both streams' student logits.

        Raises:
            InputError: A stream is missing, or anything `Objective.__call__` refuses.
        """
        for name, stream in (("teacher_responses", teacher_responses), ("student_responses", student_responses)):
            if not isinstance(stream, Stream):
                raise InputError(
                    "a two-stream objective needs the teacher's responses and the student's, each as a "
                    f"distill.Stream; {name} is {'missing' if stream is None else f'a {type(stream).__name__}'}. "
                    "For one stream use distill.Objective"
                )
        return add_streams(
            _apply(self.teacher_responses, teacher_responses),
            _apply(self.student_responses, student_responses),
            balance,
        )


def add_streams(on_teacher: LossSums, on_student: LossSums, balance: float | Scalar) -> TwoStreamSums:
    """The sums of both streams with the two-stream loss and count, see `TwoStreamObjective.__call__`."""
    check_in_range("balance", balance, 0.0, 1.0)
    return TwoStreamSums(
        loss=2.0 * (1.0 - balance) * on_teacher.loss + 2.0 * balance * on_student.loss,
        count=0.5 * (on_teacher.count + on_student.count),
        teacher_responses=on_teacher,
        student_responses=on_student,
    )


def _apply(objective: Objective, stream: Stream) -> LossSums:
    return objective(
        stream.student_logits,
        stream.teacher_logits,
        stream.tokens.mask,
        stream.tokens.uniforms,
        stream.tokens.labels,
        alpha=stream.tokens.alpha,
        acceptance=stream.tokens.acceptance,
        segment_ids=stream.tokens.segment_ids,
        floor=stream.tokens.floor,
        temperature=stream.tokens.temperature,
        k=stream.tokens.k,
    )
