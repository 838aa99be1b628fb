"""DistiLLM-2's two schedules: a skew for every sequence, and the balance of the two streams over training.

Paper and released code differ on both. In the release both are switched off: the skew stays 0.1 and the balance 1/2.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerSequence, Scalar, TokenIds, TokenMask
from selecttkd_jax._checks import as_mask, check_in_range
from selecttkd_jax._errors import check_at_least, check_one_of
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses import cross_entropy

BALANCES = ("fixed", "published", "smooth", "released")
"""What `Balance` may be called."""


@any_mesh(like="student_logits", drop=2)
def confidence_gap(student_logits: Logits, teacher_logits: Logits, labels: TokenIds, mask: TokenMask) -> PerSequence:
    """How much more likely, per token, the teacher finds each response than the student does.

        gap = exp(mean_t log p(y_t)) - exp(mean_t log q(y_t))

    On the student's own responses the published rule takes the opposite, student minus teacher: negate it.

    Args:
        student_logits: [B, T, V].
        teacher_logits: [B, T, V].
        labels: [B, T] token ids.
        mask: [B, T] bool or 0/1.

    Returns:
        [B] float32 in (-1, 1), a constant to differentiation; 0 for a sequence without valid positions.

    Source: Ko et al., 2025, "DistiLLM-2", section 3.3.
    """
    mask = as_mask(mask)
    length = jnp.maximum(jnp.sum(mask, axis=-1).astype(jnp.float32), 1.0)

    def likelihood(logits: Logits) -> Array:
        surprise = jnp.where(mask, cross_entropy(jax.lax.stop_gradient(logits), labels), 0.0)
        return jnp.exp(-jnp.sum(surprise, axis=-1) / length)

    return likelihood(teacher_logits) - likelihood(student_logits)


def adaptive_skew(
    gap: PerSequence,
    reference_gap: float | Scalar,
    *,
    base: float = 0.1,
    low: float = 0.01,
    high: float = 0.1,
) -> PerSequence:
    """The skew of each sequence, from its gap to the teacher.

        alpha = clip(1 - (1 - base) reference_gap / (gap + 1e-5), low, high)

    With the published numbers and a positive reference m this is nearly a switch: 0.1 for a negative gap, 0.01
    from 0 up to 0.909 m, a short ramp, and 0.1 from m on. For the paper's mini-batch-wise skew pass the batch's mean
    gap, repeated. Published: used from the second epoch on, `base` before. Released: never used.

    Args:
        gap: [B], see `confidence_gap`.
        reference_gap: A typical gap, as from `ReferenceGap`.
        base: The skew at which a sequence with the reference gap trains.
        low: Least skew.
        high: Largest skew.

    Returns:
        [B] float32, the `alpha` argument of an objective.

    Source: Ko et al., 2025, "DistiLLM-2", section 3.3.
    """
    for name, value in (("base", base), ("low", low), ("high", high)):
        check_in_range(name, value, 0.0, 1.0, include_high=False)
    alpha = 1.0 - (1.0 - base) * reference_gap / (gap + 1e-5)
    # A gap that cancels the epsilon divides 0 by 0 when the reference is 0; it is a gap of nothing, hence `high`.
    return jax.lax.stop_gradient(jnp.clip(jnp.where(jnp.isnan(alpha), high, alpha), low, high))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReferenceGap:
    """The mean gap over the first batches of training, frozen afterwards, as in DistiLLM-2's code (100 steps there).

    Carry it in the training state: `reference = reference.update(gap, window=100)`.
    """

    total: Scalar
    batches: Scalar

    @classmethod
    def start(cls) -> "ReferenceGap":
        """A reference that has seen nothing; its value is 0."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    @property
    def value(self) -> Scalar:
        """The mean so far."""
        return self.total / jnp.maximum(self.batches, 1.0)

    def update(self, gap: PerSequence, *, window: int = 100) -> "ReferenceGap":
        """Takes a batch's gaps [B] in, while fewer than `window` batches have been seen."""
        open_ = (self.batches < window).astype(jnp.float32)
        return ReferenceGap(self.total + open_ * jnp.mean(gap), self.batches + open_)


def balance_published(step: int | Array, *, steps_per_epoch: int, epochs: int) -> Scalar:
    """The balance as Algorithm 1 prints it.

        balance = clip(e / E + t / T, 1/2, 1)

    with e = 1 ... E the epoch and t the step within its T steps. Taken literally: with three epochs it reaches 1 two
    thirds into the first, starts the second at 2/3, and stays at 1 in the third, which then trains on the student's
    responses alone. `balance_smooth` is likely what was meant.

    Args:
        step: Counted from 0 over the whole training.
        steps_per_epoch: T.
        epochs: E.

    Returns:
        float32 scalar in [1/2, 1].

    Source: Ko et al., 2025, "DistiLLM-2", Algorithm 1.
    """
    epoch, within = _epoch_and_progress(step, steps_per_epoch, epochs)
    return jnp.clip((epoch + 1.0) / epochs + within, 0.5, 1.0)


def balance_smooth(step: int | Array, *, steps_per_epoch: int, epochs: int) -> Scalar:
    """The balance that Algorithm 1 seems to mean: rising over all of training without jumps.

        balance = clip((e - 1) / E + t / (E T), 1/2, 1)

    Args:
        step: Counted from 0 over the whole training.
        steps_per_epoch: T.
        epochs: E.

    Returns:
        float32 scalar in [1/2, 1].
    """
    epoch, within = _epoch_and_progress(step, steps_per_epoch, epochs)
    return jnp.clip((epoch + within) / epochs, 0.5, 1.0)


def balance_released(step: int | Array, *, total_steps: int) -> Scalar:
    """The balance as the released trainer has it under its option `gradual_beta` (off by default: 1/2 throughout).

        balance = 1/2 + 1/4 min(1, 2 step / total_steps)

    that is, weights (1, 1) at the start and (1/2, 3/2) from half-way on.

    Args:
        step: Counted from 0.
        total_steps: Of the whole training.

    Returns:
        float32 scalar in [1/2, 3/4].

    Source: jongwooko/distillm-2, src/distillm_trainer.py.
    """
    check_at_least("total_steps", total_steps, 1)
    return 0.5 + 0.25 * jnp.minimum(1.0, 2.0 * jnp.asarray(step).astype(jnp.float32) / total_steps)


@dataclass(frozen=True)
class Balance:
    """A balance by name, as a function of the finished steps; equal ones are one compiled program.

    Attributes:
        kind: "fixed" (1/2), "published", "smooth" or "released".
        steps: Of the whole training.
        epochs: Into which published and smooth divide them.
    """

    kind: str
    steps: int
    epochs: int = 1

    def __post_init__(self):
        check_one_of("balance", self.kind, BALANCES)

    def __call__(self, step: int | Array) -> Scalar | float:
        by_epoch = {"steps_per_epoch": -(-self.steps // self.epochs), "epochs": self.epochs}
        if self.kind == "published":
            return balance_published(step, **by_epoch)
        if self.kind == "smooth":
            return balance_smooth(step, **by_epoch)
        return balance_released(step, total_steps=self.steps) if self.kind == "released" else 0.5


def _epoch_and_progress(step: int | Array, steps_per_epoch: int, epochs: int) -> tuple[Scalar, Scalar]:
    check_at_least("steps_per_epoch", steps_per_epoch, 1)
    check_at_least("epochs", epochs, 1)
    # In integers: compiled, a quotient of floats may come out just under the epoch that has begun.
    step = jnp.asarray(step)
    return (step // steps_per_epoch).astype(jnp.float32), (step % steps_per_epoch).astype(jnp.float32) / steps_per_epoch
