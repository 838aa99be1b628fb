"""The paper's verifiers: does the teacher accept the token the student would propose?

A verifier maps the logits of a position to its acceptance, the probability in [0, 1] that the proposal passes. It is
computed from the raw distributions at temperature 1 and never differentiated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax import losses
from selecttkd_jax._array_types import Array, Int, Key, Logits, PerToken
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses._closed_form import as_float32, check_logits, distribution
from selecttkd_jax.losses._cross_entropy import check_labels, pick


@any_mesh(like="student_logits", drop=1)
def greedy_top_k(student_logits: Logits, teacher_logits: Logits, *, k: int | Array = 5) -> PerToken:
    """Accepts a position whose most likely student token is among the teacher's k most likely.

        acceptance = 1  if  rank_p(y) < k and p(y) > 0,  y = argmax_v q(v),  else 0

    where rank_p(y) is the number of tokens that the teacher places before y: those more likely, and those as likely
    with a lower id. So at most k tokens can pass, also where bfloat16 logits tie, and none that the teacher excludes.
    The student proposes the lowest of its best token ids. Counting needs no sort, and no gather across a vocabulary
    sharded over devices.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        k: From 1 (the two argmaxes agree) to V (all that the teacher does not exclude passes); or [...] of such.

    Returns:
        Acceptance [...] float32, 0 or 1.

    Raises:
        InputError: k is out of range.
        TypeError: k is not an integer.

    Source: SelecTKD supplement, section A ("greedy Top-k").
    """
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    k = check_k(k, student_logits.shape[-1])
    place = rank(teacher_logits, best_token(student_logits))
    proposes = jnp.isfinite(jnp.max(student_logits, axis=-1))
    return verdict(place < k, jnp.where(proposes, place, jnp.nan))


@any_mesh(like="student_logits", drop=1)
def nucleus(student_logits: Logits, teacher_logits: Logits, *, tau: float = 0.9) -> PerToken:
    """Accepts a position whose most likely student token is in the nucleus of the teacher.

        acceptance = 1  if  sum of p over the tokens that the teacher places before y  < tau  and  p(y) > 0,
                     y = argmax_v q(v),  else 0

    A `greedy_top_k` whose k follows the teacher: few tokens pass where it is sure, many where it is not. The teacher's
    first choice always passes, and at tau = 1 so does all that it does not exclude. Order and ties are those of
    `greedy_top_k`.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        tau: The teacher's mass before the first token that is rejected, in (0, 1].

    Returns:
        Acceptance [...] float32, 0 or 1.

    Raises:
        InputError: tau is out of range.

    Source: the nucleus of Holtzman et al., 2020, "The curious case of neural text degeneration", as a verifier; an
    adaptive k is the future work of the SelecTKD supplement.
    """
    check_in_range("tau", tau, 0.0, 1.0)
    if not isinstance(tau, jax.Array) and tau <= 0:
        raise InputError(f"tau must be above 0, got {tau}: at 0 nothing passes")
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    proposal = best_token(student_logits)
    p = distribution(teacher_logits).prob
    mass = jnp.sum(jnp.where(stands_before(teacher_logits, proposal), p, 0.0), axis=-1)
    # The rank is infinite for what the teacher excludes, and NaN beside what is no distribution.
    proposes = jnp.isfinite(jnp.max(student_logits, axis=-1))
    place = jnp.where(proposes, rank(teacher_logits, proposal), jnp.nan)
    # Rounding may lift the mass of all but one token to 1.
    return verdict(((mass < tau) | (tau >= 1)) & (place < jnp.inf), place)


@any_mesh(like="student_logits", drop=1)
def spec_k(student_logits: Logits, teacher_logits: Logits, *, k: int | Array = 5) -> PerToken:
    """The probability that at least one of k student samples passes the speculative test.

        acceptance = 1 - TV(p, q)^k,   TV(p, q) = 1 - sum_v min(p, q)

    One sample y ~ q passes with probability E[min(1, p(y) / q(y))] = sum_v min(p, q), and the k samples are
    independent. One uniform draw against this acceptance (see `token_weights`) therefore has exactly the law of
    drawing k tokens and testing each, without sampling from the vocabulary.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        k: Number of candidates, at least 1; or [...] of such.

    Returns:
        Acceptance [...] float32 in [0, 1].

    Raises:
        InputError: k < 1.
        TypeError: k is not an integer.

    Source: SelecTKD supplement, section A ("non-greedy Spec-k"); Leviathan et al., 2023, Theorem 3.5.
    """
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    k = check_k(k)
    # The same expressions as in the divergences, so that one program computes them once.
    q, p = distribution(student_logits).prob, distribution(teacher_logits).prob
    overlap = jnp.sum(jnp.minimum(p, q), axis=-1)
    # 1 - (1 - overlap)^k without cancellation where the overlap is small.
    return -jnp.expm1(k * jnp.log1p(-jnp.minimum(overlap, 1.0))).astype(jnp.float32)


@any_mesh(like="student_logits", drop=1)
def spec_k_by_sampling(student_logits: Logits, teacher_logits: Logits, *, key: Key, k: int = 5) -> PerToken:
    """The procedure `spec_k` is the law of: draw k student tokens, test each against the teacher.

        y_1 ... y_k ~ q,   accepted = any_j u_j < min(1, p(y_j) / q(y_j)),   u_j ~ U[0, 1)

    Candidates are independent, with replacement, and a rejection is not followed by residual resampling. Sampling k
    tokens from the vocabulary at every position is slow; this is here to check `spec_k`, not to train with.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        key: PRNG key.
        k: Number of candidates, at least 1.

    Returns:
        Acceptance [...] float32, 0 or 1.

    Source: SelecTKD supplement, section A.
    """
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    check_k(k)
    token_key, uniform_key = jax.random.split(key)
    positions = student_logits.shape[:-1]
    candidates = jax.random.categorical(token_key, student_logits, shape=(k, *positions))
    log_q = jnp.take_along_axis(jax.nn.log_softmax(student_logits)[None], candidates[..., None], axis=-1)[..., 0]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(teacher_logits)[None], candidates[..., None], axis=-1)[..., 0]
    uniforms = jax.random.uniform(uniform_key, (k, *positions))
    passing = jnp.exp(jnp.minimum(log_p - log_q, 0.0))
    return verdict(jnp.any(uniforms < passing, axis=0), jnp.sum(passing, axis=0))


@any_mesh(like="student_logits", drop=1)
def spec_label(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """The probability that the token of the text passes the speculative test.

        acceptance = min(1, p(y) / q(y)),   y the label

    On text that the student wrote, this is `spec_k` with k = 1 whose one candidate is the token that was sampled.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        labels: [...] integers. Positions whose label is outside [0, V) are rejected.

    Returns:
        Acceptance [...] float32 in [0, 1].

    Raises:
        InputError: The shapes do not match.
        TypeError: The labels are not integers.

    Source: TrOPD (arXiv 2606.01249), its trust in a sampled token; Leviathan et al., 2023.
    """
    student_logits, teacher_logits = constants(student_logits, teacher_logits)
    check_labels(student_logits, labels)
    labels = labels.astype(jnp.int32)  # the vocabulary's size may not fit their dtype
    log_q, log_p = (pick(jax.nn.log_softmax(logits), labels) for logits in (student_logits, teacher_logits))
    inside = (labels >= 0) & (labels < student_logits.shape[-1])
    # What the teacher excludes is rejected, also where the student excludes it, too.
    log_ratio = jnp.where(inside & ~jnp.isneginf(log_p), log_p - log_q, -jnp.inf)
    return jnp.exp(jnp.minimum(log_ratio, 0.0)).astype(jnp.float32)


def hellinger(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """The Hellinger distance itself as a soft weight: the *less* the two agree, the more a token counts.

        acceptance = H(p, q) = || sqrt(p) - sqrt(q) ||_2 / sqrt(2)

    Use it with `floor=0` and without uniforms, so that the weight is H. Opposite in sense to `greedy_top_k` and
    `spec_k`; `hellinger_gate` is the reading that agrees with them.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].

    Returns:
        Acceptance [...] float32 in [0, 1].

    Source: SelecTKD main text; the supplement's Table 6, row H.
    """
    return jax.lax.stop_gradient(losses.hellinger(student_logits, teacher_logits)).astype(jnp.float32)


def hellinger_gate(student_logits: Logits, teacher_logits: Logits, *, tau: float = 0.5) -> PerToken:
    """Accepts a position whose two distributions are within Hellinger distance tau of each other.

        acceptance = 1 if H(p, q) <= tau else 0

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        tau: The largest distance accepted, in [0, 1].

    Returns:
        Acceptance [...] float32, 0 or 1.

    Raises:
        InputError: tau is out of range.
    """
    check_in_range("tau", tau, 0.0, 1.0)
    distance = hellinger(student_logits, teacher_logits)
    return verdict(distance <= tau, distance)


@any_mesh(like="student_logits", drop=1)
def accept_all(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """Accepts every position: distillation without selection.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V]. Unused.

    Returns:
        Ones, [...] float32.
    """
    del teacher_logits
    return jnp.ones(jnp.shape(student_logits)[:-1], jnp.float32)


def best_token(logits: Logits) -> Array:
    """The most likely token of each position, the lowest id among ties, [...] int32; V, which is none, beside NaN."""
    token_ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_best = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_best, token_ids, logits.shape[-1]), axis=-1)


def rank(logits: Logits, token_ids: Array) -> Array:
    """How many tokens stand before the given one, [...] float32: 0 for the most likely.

    Those more likely, and of equally likely ones those with a lower id, as in a stable sort. Infinite for a token that
    is excluded or outside the vocabulary; NaN where the logits hold NaN or +inf, which is no distribution.

    The one value gathered from each position costs a vocabulary sharded over devices no more than a sum over them.
    """
    logit, before = _logit_and_before(logits, token_ids)
    # Counted in float32, exact up to 2^24 tokens, because XLA's CPU backend sums integers far slower.
    count = jnp.sum(jnp.where(logits < jnp.inf, before.astype(jnp.float32), jnp.nan), axis=-1)
    return count + jnp.where(logit[..., 0] > -jnp.inf, 0.0, jnp.inf)


def stands_before(logits: Logits, token_ids: Array) -> Array:
    """Which tokens stand before the given one in the order of `rank`, [..., V] bool."""
    return _logit_and_before(logits, token_ids)[1]


def _logit_and_before(logits: Logits, token_ids: Array) -> tuple[Array, Array]:
    token_ids = token_ids.astype(jnp.int32)  # the vocabulary's size may not fit their dtype
    inside = (token_ids >= 0) & (token_ids < logits.shape[-1])
    index = jnp.where(inside, token_ids, 0)[..., None]
    logit = jnp.where(inside[..., None], jnp.take_along_axis(logits, index, axis=-1), -jnp.inf)
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return logit, (logits > logit) | ((logits == logit) & (vocabulary < index))


def verdict(accepted: Array, decided_by: Array) -> PerToken:
    """1 where accepted and 0 where not, in float32; NaN where the number that decided is NaN: comparisons hide it."""
    return jnp.where(jnp.isnan(decided_by), jnp.nan, accepted.astype(jnp.float32))


def constants(student_logits: Logits, teacher_logits: Logits) -> tuple[Logits, Logits]:
    """Both logits checked, in float32 and cut off from differentiation."""
    check_logits(student_logits, teacher_logits)
    return jax.lax.stop_gradient((as_float32(student_logits), as_float32(teacher_logits)))


def check_k(k: int | Array, vocabulary: int | None = None) -> int | Array:
    """k, if it is an integer from 1 up (to the size of the vocabulary, if given); an array [...] of such as floats.

    Raises:
        InputError: k is out of range; of an array that cannot be seen.
        TypeError: k is no integer.
    """
    if isinstance(k, jax.Array) and k.ndim and jnp.issubdtype(k.dtype, jnp.integer):
        return k.astype(jnp.float32)
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if vocabulary is not None and k > vocabulary:
        raise InputError(f"k must be at most the vocabulary size {vocabulary}, got {k}")
    return k
