"""Ranking scores: how much each position matters, before any is chosen.

A verifier decides on a position by itself. The methods here rank all positions of a batch and keep a share of them:
a score [...] without gradient, then `top_fraction` or `at_most`, then the mask goes to the objective as `acceptance`,
usually with `floor=0`.

| method         | score                                    | kept                | divergence      | normaliser |
|----------------|------------------------------------------|---------------------|-----------------|------------|
| RHO-1          | excess_loss, student and reference       | top fraction        | cross_entropy   | weight     |
| Token Cleaning | excess_loss, base and reference (static) | top fraction, floor | cross_entropy   | weight     |
| AdaSPEC        | divergence_gap                           | top, quantile       | forward_kl      | token      |
| ENT            | error_norm                               | not top, or at most | cross_entropy   | token      |
| ATKD           | target_uncertainty                       | median split        | see `losses`    | weight     |
| entropy        | losses.entropy of teacher or student     | top fraction        | any             | any        |
| control        | random_scores                            | top fraction        | any             | any        |
"""

import jax
import jax.numpy as jnp

from selecttkd_jax import losses
from selecttkd_jax._array_types import Array, Int, Key, Logits, PerToken
from selecttkd_jax._checks import check_floating
from selecttkd_jax._mesh_axes import any_mesh
from selecttkd_jax.losses._closed_form import as_float32
from selecttkd_jax.losses._cross_entropy import check_labels
from selecttkd_jax.losses._target import is_target, log_rest


def excess_loss(logits: Logits, reference_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """How much worse a model predicts the label than a reference does.

        score = CE(model) - CE(reference);  the highest are kept

    RHO-1 scores the student as it trains; Token Cleaning scores the fixed base model, once.

    Args:
        logits: [..., V] of the model that is scored.
        reference_logits: [..., V] of the reference, of the same tokenizer.
        labels: [...] token ids.

    Returns:
        [...] float32, in nats, any sign; infinite where one of the two excludes the label, 0 where both do.

    Source: Lin et al., 2024, "Rho-1: Not all tokens are what you need"; Pang et al., 2025, "Token Cleaning".
    """
    return _excess(losses.cross_entropy(logits, labels), losses.cross_entropy(reference_logits, labels))


def divergence_gap(student_logits: Logits, teacher_logits: Logits, reference_logits: Logits) -> PerToken:
    """How much further the student is from the teacher than an already distilled reference is.

        score = KL(p || q) - KL(p || r);  the highest are kept

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].
        reference_logits: [..., V].

    Returns:
        [...] float32, in nats, any sign; infinite where one of the two excludes what the teacher expects, 0 where both
        do.

    Source: Hu et al., 2025, "AdaSPEC: Selective knowledge distillation for efficient speculative decoders".
    """
    return _excess(
        losses.forward_kl(student_logits, teacher_logits), losses.forward_kl(reference_logits, teacher_logits)
    )


@any_mesh(like="student_logits", drop=1)
def error_norm(student_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """How far the student's distribution is from certainty in the label.

        score = || q - onehot(label) ||_2;  the highest are dropped

    Args:
        student_logits: [..., V].
        labels: [...] token ids.

    Returns:
        [...] float32, in [0, sqrt 2].

    Source: Li et al., 2024, "Error norm truncation: robust training in the presence of data noise" (ENT).
    """
    check_floating("student_logits", student_logits)
    check_labels(student_logits, labels)
    q = jax.nn.softmax(as_float32(jax.lax.stop_gradient(student_logits)))
    is_label = jax.lax.broadcasted_iota(jnp.int32, q.shape, q.ndim - 1) == labels.astype(jnp.int32)[..., None]
    return jnp.sqrt(jnp.sum(jnp.square(q - is_label.astype(q.dtype)), axis=-1))


@any_mesh(like="logits", drop=1)
def target_uncertainty(logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """How unsure a model is of the label.

        score = 1 - p(label)

    ATKD takes the teacher's; its reversed variant the student's.

    Args:
        logits: [..., V].
        labels: [...] token ids.

    Returns:
        [...] float32, in [0, 1].

    Source: Zhong et al., 2024, "Revisiting knowledge distillation for autoregressive language models" (ATKD).
    """
    check_floating("logits", logits)
    check_labels(logits, labels)
    # The others' mass is summed: 1 - p would have no digits left where a model is sure.
    log_probs = jax.nn.log_softmax(as_float32(jax.lax.stop_gradient(logits)))
    return jnp.exp(log_rest(log_probs, is_target(log_probs, labels)))


@any_mesh(like="student_logits", drop=1)
def student_entropy(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """How unsure the student is of the next token.

        score = H(q);  the highest are kept

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V]. Unused.

    Returns:
        [...] float32, in nats, in [0, log V].

    Source: SE-KD (arXiv 2602.01395), which keeps a fifth.
    """
    del teacher_logits
    return losses.entropy(jax.lax.stop_gradient(student_logits))


@any_mesh(like="student_logits", drop=1)
def teacher_entropy(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """How unsure the teacher is of the next token.

        score = H(p)

    Args:
        student_logits: [..., V]. Unused.
        teacher_logits: [..., V].

    Returns:
        [...] float32, in nats, in [0, log V].
    """
    del student_logits
    return losses.entropy(jax.lax.stop_gradient(teacher_logits))


def entropy_gap(student_logits: Logits, teacher_logits: Logits) -> PerToken:
    """How much less sure the student is than its teacher.

        score = H(q) - H(p);  the highest are kept

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].

    Returns:
        [...] float32, in nats, any sign.

    Source: TSD-KD (arXiv 2603.13260), whose weight is its sigmoid.
    """
    return student_entropy(student_logits, teacher_logits) - teacher_entropy(student_logits, teacher_logits)


def label_uncertainty(student_logits: Logits, teacher_logits: Logits, labels: Int[Array, "*positions"]) -> PerToken:
    """How unsure the teacher is of the label.

        score = 1 - p(label)

    Args:
        student_logits: [..., V]. Unused.
        teacher_logits: [..., V].
        labels: [...] token ids.

    Returns:
        [...] float32, in [0, 1]; see `target_uncertainty`.
    """
    del student_logits
    return target_uncertainty(teacher_logits, labels)


def random_scores(key: Key, shape: tuple[int, ...]) -> PerToken:
    """Scores without meaning: the control for every selector that keeps a fraction.

    Args:
        key: PRNG key.
        shape: Of the positions, [B, T].

    Returns:
        [...] float32, uniform in [0, 1).
    """
    return jax.random.uniform(key, shape)


def _excess(loss: PerToken, reference_loss: PerToken) -> PerToken:
    """How much larger the loss is, a constant; two infinite losses are equal, where their difference would be NaN."""
    excess = jnp.where(loss == reference_loss, 0.0, loss - reference_loss)
    return jax.lax.stop_gradient(excess)
