"""KL divergences on the teacher's most likely tokens: what is left of a divergence when only those are known."""

import jax
import jax.numpy as jnp

from selecttkd_jax._array_types import Array, Logits, PerToken
from selecttkd_jax._checks import check_count
from selecttkd_jax.losses._adaptive import lowest_fitting
from selecttkd_jax.losses._closed_form import Distribution, Kernel, divergence_from_kernel
from selecttkd_jax.losses._kullback_leibler import forward_kernel, reverse_kernel
from selecttkd_jax.losses._target import log_rest, without


def teacher_top_k_kl(student_logits: Logits, teacher_logits: Logits, *, k: int = 16, tail: bool = True) -> PerToken:
    """Forward KL divergence of each position on the teacher's k most likely tokens.

        KL = sum_{v in S} p log(p / q) + P log(P / Q),   S the teacher's top k,   P = sum_{v not in S} p,   Q likewise

    with p the teacher and q the student. The last term is the bucket of all other tokens: the student is told how much
    they count for together, not which of them. Without it (`tail=False`) both distributions are renormalised to S, and
    what either expects outside of S counts for nothing.

    Tokens as likely as the k-th belong to S together. From k = V on this is `forward_kl`; below, with the tail, never
    more than it.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        k: Tokens in S, at least 1.
        tail: Whether the other tokens count as one.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: k is no whole number of at least 1.

    Source: the truncated distillation losses of servers that return top-k log-probabilities; TrOPD (arXiv 2606.01249)
    teaches rejected tokens by one.
    """
    check_count("k", k)
    return divergence_from_kernel(_KERNELS["forward", tail], student_logits, teacher_logits, k)


def teacher_top_k_reverse_kl(
    student_logits: Logits, teacher_logits: Logits, *, k: int = 16, tail: bool = True
) -> PerToken:
    """Reverse KL divergence of each position on the teacher's k most likely tokens.

        KL = sum_{v in S} q log(q / p) + Q log(Q / P),   S the teacher's top k,   P = sum_{v not in S} p,   Q likewise

    with p the teacher and q the student; see `teacher_top_k_kl` for the bucket, the ties, and `tail=False`.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        k: Tokens in S, at least 1.
        tail: Whether the other tokens count as one.

    Returns:
        [...] float32, in nats, at least 0.

    Raises:
        InputError: k is no whole number of at least 1.
    """
    check_count("k", k)
    return divergence_from_kernel(_KERNELS["reverse", tail], student_logits, teacher_logits, k)


def _with_tail(kernel: Kernel) -> Kernel:
    def on_buckets(student: Distribution, teacher: Distribution, k: Array) -> tuple[PerToken, Logits]:
        return kernel(student, _tail_shaped_by_student(student, teacher, in_top_k(teacher.prob, k)))

    return on_buckets


def _without_tail(kernel: Kernel) -> Kernel:
    def on_top(student: Distribution, teacher: Distribution, k: Array) -> tuple[PerToken, Logits]:
        outside = ~in_top_k(teacher.prob, k)
        return kernel(_only(student, outside), _only(teacher, outside))

    return on_top


_KERNELS: dict[tuple[str, bool], Kernel] = {
    (name, tail): around(kernel)
    for name, kernel in (("forward", forward_kernel), ("reverse", reverse_kernel))
    for tail, around in ((True, _with_tail), (False, _without_tail))
}


def _tail_shaped_by_student(student: Distribution, teacher: Distribution, head: Array) -> Distribution:
    """The teacher with its tail spread as the student's is: p in the head, P q / Q outside.

    A bucket says nothing of how its mass is spread. Where both spread it alike, the whole divergence is that of the
    buckets, and so is its gradient: whole-vocabulary kernels do, and no array has one column more.
    """
    rest_p, rest_q = (log_rest(d.log_prob, head)[..., None] for d in (teacher, student))
    some = rest_q > -jnp.inf
    spread = jnp.where(some, rest_p, 0.0) + student.log_prob - jnp.where(some, rest_q, 0.0)
    # A student that excludes the whole tail has no shape to lend; the divergence is infinite with any.
    log_prob = jnp.where(head | ~some, teacher.log_prob, spread)
    return Distribution(jnp.exp(log_prob), log_prob)


def _only(one: Distribution, outside: Array) -> Distribution:
    """The distribution over what is not outside."""
    log_prob = without(one.log_prob, outside, log_rest(one.log_prob, outside))
    return Distribution(jnp.exp(log_prob), log_prob)


def in_top_k(p: Logits, k: int | Array) -> Array:
    """Which tokens have fewer than k that are more likely, [..., V] bool; without a sort, as in `in_head`."""
    lowest = lowest_fitting(p, lambda threshold: jnp.sum((p > threshold).astype(p.dtype), axis=-1, keepdims=True) < k)
    return jax.lax.stop_gradient(p >= lowest)
