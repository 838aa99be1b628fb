"""The selective distillation objective: a divergence, the verifier that decides which tokens count, and a normaliser.

    loss = sum_{b,t} c[b,t] (accepted[b,t] D(p, q)[b,t] + floor (1 - accepted[b,t]) R(p, q)[b,t])

with the coefficients c of `token_coefficients`. R, the divergence of rejected tokens, is D itself unless another is
named: then a token weighs floor + (1 - floor) accepted. It comes in two halves. `Objective.token_terms` works on
positions of any shape, so a caller may run it chunk by chunk; `reduce_terms` needs only its [B, T] results.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Int, Logits, PerToken, Scalar, TokenIds, TokenMask
from selecttkd_jax._checks import as_mask, check_count, check_in_range, check_rank, check_same_shape
from selecttkd_jax._errors import InputError, check_one_of
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.distill._chunks import terms_by_chunks
from selecttkd_jax.distill._inputs import check_floor, spread_options
from selecttkd_jax.distill._shadows import Shadow, ShadowTerms, check_shadows, shadow_terms
from selecttkd_jax.distill._static_key import static_key
from selecttkd_jax.distill._sums import NORMALIZERS, LossSums, TokenTerms, reduce_terms
from selecttkd_jax.losses import cross_entropy, forward_kl
from selecttkd_jax.losses._closed_form import as_float32
from selecttkd_jax.selection import accept_all
from selecttkd_jax.selection._calling import call_with_labels
from selecttkd_jax.selection._weights import weigh


@dataclass(frozen=True, eq=False)
class Objective:
    """What to distil: frozen, hashable and comparable by value, so it can be a static argument of `jax.jit`.

    Attributes:
        divergence: `f(student_logits, teacher_logits) -> [...]`, from `losses`; bind options with `functools.partial`.
            A parameter named `labels` receives the labels; `losses.cross_entropy` itself fits.
        verifier: `f(student_logits, teacher_logits) -> acceptance [...]`, from `selection`. It sees the logits at
            temperature 1. A parameter named `labels` receives the labels.
        floor: Weight of a rejected token, in [0, 1]; 1 distils every token alike. The paper's beta. With `rejected` it
            is that divergence's coefficient, and may exceed 1.
        temperature: Divides both models' logits in the divergence. There is no factor temperature^2.
        normalizer: What `count` is: "sequence" (the mean over sequences of each one's mean over all its valid
            positions, as in the paper and DistiLLM-2), "token" (the mean over all valid positions) or "weight" (the sum
            of weights).
        label_share: r in (1 - r) weight D + r CE, the share of the cross-entropy on labels, which no verifier weighs.
        rejected: The divergence of rejected tokens, in the form of `divergence`; None: the same one. An acceptance
            between 0 and 1 (soft, or expected) shares a token out: acceptance D + floor (1 - acceptance) R. A skew that
            comes with a batch is the other one's.
        shadows: Other verifiers by name, which see the same tokens and change nothing: the sums say what they accept,
            and how that overlaps with what `verifier` does (`ShadowedSums.means`). A name with None is a random gate of
            the same rate.

    Example:
        >>> from functools import partial
        >>> from selecttkd_jax import losses, selection
        >>> objective = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=5), floor=0.01)
        >>> objective == Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=5), floor=0.01)
        True

    Source: SelecTKD supplement, sections A and F.
    """

    divergence: Callable = forward_kl
    verifier: Callable = accept_all
    floor: float = 0.01
    temperature: float = 1.0
    normalizer: str = "sequence"
    label_share: float = 0.0
    rejected: Callable | None = None
    shadows: tuple[Shadow, ...] = ()

    def __post_init__(self):
        for name in ("divergence", "verifier") if self.rejected is None else ("divergence", "verifier", "rejected"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function of logits, got {getattr(self, name)!r}")
        check_shadows(self.shadows)
        check_floor("floor", self.floor, coefficient=self.rejected is not None)
        check_in_range("label_share", self.label_share, 0.0, 1.0)
        if not 0.0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be positive, got {self.temperature}")
        check_one_of("normalizer", self.normalizer, NORMALIZERS)
        if self.label_share > 0 and self.normalizer == "weight":
            raise InputError(
                f"label_share is {self.label_share}, which no weight multiplies; it cannot be divided by the sum of "
                "weights: choose normalizer 'sequence' or 'token'"
            )

    def _key(self):
        return tuple(static_key(getattr(self, field.name)) for field in fields(self))

    def __eq__(self, other):
        return self._key() == other._key() if isinstance(other, Objective) else NotImplemented

    def __hash__(self):
        return hash(self._key())

    @any_mesh()
    def __call__(
        self,
        student_logits: Logits,
        teacher_logits: Logits | None,
        mask: TokenMask,
        uniforms: PerToken | None = None,
        labels: TokenIds | None = None,
        *,
        alpha: Array | None = None,
        acceptance: PerToken | None = None,
        segment_ids: TokenIds | None = None,
        floor: Scalar | PerToken | None = None,
        temperature: Scalar | PerToken | None = None,
        k: Array | None = None,
        chunk_size: int | None = None,
    ) -> LossSums:
        """Sums the objective over a batch; the loss of the batch is `sums.loss / sums.count` (`sums.mean`).

        Args:
            student_logits: [B, T, V], any float dtype.
            teacher_logits: [B, T, V]. Treated as a constant. None for a divergence and a verifier that ask no teacher.
            mask: [B, T], boolean or integers 0/1: the positions that carry loss.
            uniforms: [B, T] draws from [0, 1), one per position, or None for the expectation over them.
            labels: [B, T] token ids, if the objective uses them.
            alpha: [B], a skew per sequence (see `adaptive_skew`), or [B, T], a skew per position, in place of the
                divergence's own.
            acceptance: [B, T] in [0, 1], in place of the verifier's: how ranking selectors and cached verdicts enter.
            segment_ids: [B, T] integers, which of the sequences packed in a row a position belongs to, from 1 to T; 0
                for padding. The "sequence" normaliser and the acceptance rate go by them. None: a row is one sequence.
            floor: A number or [B, T], in place of the objective's own: for schedules (`Schedules`).
            temperature: The same of the temperature.
            k: The same of the verifier's k, integers.
            chunk_size: Time steps evaluated at once, or None for all: the same numbers with fewer [B, T, V]
                intermediates. On a CPU, B * chunk_size of about 8 keeps them in its cache and more than halves the time
                (`cached_chunk_size`).

        Returns:
            LossSums, differentiable to the student's logits; ShadowedSums where there are shadows.

        Raises:
            InputError: Shapes do not match, the mask is not 0/1, or labels are needed and absent.
            TypeError: Logits are not floating point, labels not integers, or the mask neither boolean nor integer.
        """
        check_rank("student_logits", student_logits, 3)
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        mask = as_mask(mask)
        if mask.shape != student_logits.shape[:2]:
            raise InputError(f"mask must have the shape of the positions, {student_logits.shape[:2]}, got {mask.shape}")
        check_segments(segment_ids, mask)
        if alpha is not None:
            alpha = spread_alpha(alpha, mask, packed=segment_ids is not None)
        # What stands at a position that carries no loss must not matter, and 0 times a slope of NaN is NaN.
        student_logits, teacher_logits = (_where_valid(mask, logits) for logits in (student_logits, teacher_logits))
        moving = spread_options(
            mask.shape, coefficient=self.rejected is not None, floor=floor, temperature=temperature, k=k
        )
        if chunk_size is None:
            terms = self.token_terms(
                student_logits, teacher_logits, uniforms, labels, alpha=alpha, acceptance=acceptance, **moving
            )
        else:
            rest = {"teacher_logits": teacher_logits, "uniforms": uniforms, "labels": labels}
            rest.update(alpha=alpha, acceptance=acceptance, **moving)
            terms = terms_by_chunks(self.token_terms, chunk_size, student_logits, rest)
        return reduce_terms(terms, mask, self.normalizer, segment_ids)

    @any_mesh(like="student_logits", drop=1)
    def token_terms(
        self,
        student_logits: Logits,
        teacher_logits: Logits | None,
        uniforms: PerToken | None = None,
        labels: Int[Array, "*positions"] | None = None,
        *,
        alpha: Array | None = None,
        acceptance: PerToken | None = None,
        floor: PerToken | None = None,
        temperature: PerToken | None = None,
        k: Array | None = None,
    ) -> TokenTerms:
        """The per-token half: every position by itself, in any shape (all of a batch, or a chunk of it).

        Args:
            student_logits: [..., V].
            teacher_logits: [..., V].
            uniforms: [...] or None.
            labels: [...] or None.
            alpha: Broadcasts against [..., 1], or None.
            acceptance: [...] or None.
            floor: [...], in place of the objective's, or None.
            temperature: [...], in place of the objective's, or None.
            k: [...], in place of the verifier's, or None.

        Returns:
            TokenTerms of [...] float32. Only `loss` and `divergence` are differentiable.
        """
        positions = jnp.shape(student_logits)[:-1]
        if acceptance is None:
            bound = {} if k is None else {"k": k}
            acceptance = call_with_labels(self.verifier, "verifier", student_logits, teacher_logits, labels, **bound)
        acceptance = jnp.asarray(acceptance).astype(jnp.float32)
        if acceptance.shape != positions:
            raise InputError(f"acceptance must have the shape of the positions, {positions}, got {acceptance.shape}")
        if uniforms is not None:
            check_same_shape("uniforms", uniforms, "mask and acceptance", acceptance)
        lowest = self.floor if floor is None else jax.lax.stop_gradient(floor)
        weight, accepted = weigh(acceptance, uniforms, lowest)

        options = {} if alpha is None else {"alpha": alpha}
        tempered = self._tempered(student_logits, temperature), self._tempered(teacher_logits, temperature)
        divergence = call_with_labels(self.divergence, "divergence", *tempered, labels, **options)
        if self.rejected is None:
            loss = _weighed(weight, divergence)
        else:
            on_rejected = call_with_labels(self.rejected, "divergence of rejected tokens", *tempered, labels)
            loss = _weighed(accepted, divergence) + _weighed(lowest * (1 - accepted), on_rejected)
        if self.label_share > 0:
            if labels is None:
                raise InputError(f"label_share is {self.label_share}, which needs labels, got none")
            loss = (1 - self.label_share) * loss + self.label_share * cross_entropy(student_logits, labels)
        shadows: dict[str, ShadowTerms | None] = {}
        for name, shadow in self.shadows:
            if shadow is None:
                shadows[name] = None
                continue
            others = call_with_labels(shadow, "shadow", student_logits, teacher_logits, labels)
            shadows[name] = shadow_terms(shadow, others, uniforms, self.verifier, accepted)
        return TokenTerms(loss, jax.lax.stop_gradient(divergence), weight, accepted, shadows)

    def _tempered(self, logits: Any, temperature: PerToken | None) -> Any:
        # In float32: dividing bfloat16 logits would round them once more.
        if temperature is not None and logits is not None:
            logits = as_float32(logits)
            return logits / jax.lax.stop_gradient(temperature).astype(logits.dtype)[..., None]
        return logits if self.temperature == 1 or logits is None else as_float32(logits) / self.temperature


def _weighed(weight: PerToken, divergence: PerToken) -> PerToken:
    # Where the weight is zero an infinite divergence counts nothing, too: 0 * inf would be NaN. A NaN weight shows.
    return jnp.where(weight <= 0, 0.0, weight * divergence)


def spread_alpha(alpha: Array, mask: TokenMask, *, packed: bool) -> Array:
    """A skew per sequence [B] or position [B, T] as [B, T, 1].

    Raises:
        InputError: It has another shape, is not in [0, 1) (traced values pass unseen), or is one per row where rows
            hold several sequences.
    """
    shape = jnp.shape(alpha)
    if shape not in (mask.shape[:1], mask.shape):
        raise InputError(
            f"alpha must have shape {mask.shape[:1]}, one skew per sequence, or {mask.shape}, one per position; "
            f"got {shape}"
        )
    if packed and len(shape) == 1:
        raise InputError(
            "alpha is one skew per row, and with segment_ids a row holds several sequences: give one per position, "
            f"{mask.shape}"
        )
    check_in_range("alpha", alpha, 0.0, 1.0, include_high=False)
    return jnp.broadcast_to(alpha[:, None, None], (*mask.shape, 1)) if len(shape) == 1 else alpha[..., None]


def check_segments(segment_ids: TokenIds | None, mask: TokenMask) -> None:
    """Raises unless `segment_ids` are absent, or integers of the mask's shape."""
    if segment_ids is None:
        return
    check_same_shape("segment_ids", segment_ids, "mask", mask)
    if not jnp.issubdtype(jnp.asarray(segment_ids).dtype, jnp.integer):
        raise TypeError(f"segment_ids must be integers, got {jnp.asarray(segment_ids).dtype}")
    check_in_range("segment_ids", segment_ids, 0, mask.shape[1])


def _where_valid(mask: TokenMask, logits: Any) -> Any:
    """The logits [B, T, V] (or None), and zeros outside the mask; what has another shape is for others to refuse."""
    if logits is None or jnp.shape(logits)[:2] != mask.shape:
        return logits
    return jnp.where(mask[..., None], logits, jnp.zeros((), logits.dtype))
