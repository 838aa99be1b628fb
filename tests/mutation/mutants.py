"""Small ways to break the core: (file, what stands there, what to put instead, what it would mean)."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change to one file of the package. `old` must occur exactly once there."""

    path: str
    old: str
    new: str
    meaning: str


MUTANTS = [
    # Divergences
    Mutant(
        "losses/kullback_leibler.py",
        "(forward_kernel, student_logits, teacher_logits)",
        "(reverse_kernel, student_logits, teacher_logits)",
        "forward KL in the wrong direction",
    ),
    Mutant(
        "losses/kullback_leibler.py",
        "gradient = student.prob - teacher.prob",
        "gradient = teacher.prob - student.prob",
        "forward KL's gradient with the wrong sign",
    ),
    Mutant(
        "losses/kullback_leibler.py",
        "(finite(log_ratio) - finite(value)[..., None])",
        "finite(log_ratio)",
        "reverse KL's gradient not centred",
    ),
    Mutant(
        "losses/closed_form.py",
        "jnp.maximum(jnp.sum(a.prob * log_ratio, axis=-1), 0.0)",
        "jnp.sum(a.prob * log_ratio, axis=-1)",
        "a divergence below zero",
    ),
    Mutant(
        "losses/closed_form.py",
        "jnp.where(a.prob > 0, a.log_prob - log_b, 0.0)",
        "a.log_prob - log_b",
        "masked vocabulary entries give NaN",
    ),
    Mutant(
        "losses/closed_form.py",
        "    teacher_logits = jax.lax.stop_gradient(teacher_logits)\n",
        "    teacher_logits = student_logits\n",
        "the teacher forgotten",
    ),
    Mutant("losses/closed_form.py", "logits.astype(jnp.float32)", "logits", "bfloat16 logits not upcast"),
    Mutant(
        "losses/closed_form.py",
        "weighted_slope - q * jnp.sum(weighted_slope, axis=-1, keepdims=True)",
        "weighted_slope",
        "softmax Jacobian without its second term",
    ),
    Mutant(
        "losses/skew.py",
        "m = alpha * p + (1 - alpha) * q",
        "m = (1 - alpha) * p + alpha * q",
        "SKL's mixture the other way round",
    ),
    Mutant(
        "losses/skew.py",
        "m = (1 - alpha) * p + alpha * q",
        "m = alpha * p + (1 - alpha) * q",
        "SRKL's mixture the other way round",
    ),
    Mutant("losses/skew.py", "if not detach_mixture:", "if detach_mixture:", "detached mixture swapped with whole one"),
    Mutant(
        "losses/skew.py",
        "-(1 - alpha) * jnp.where(",
        "-1.0 * jnp.where(",
        "SKL's gradient too steep by 1 / (1 - alpha)",
    ),
    Mutant(
        "losses/mixtures.py",
        "jnp.where(mixture > jnp.finfo(mixture.dtype).tiny, jnp.log(mixture), larger)",
        "jnp.log(mixture)",
        "mixture underflow gives infinities",
    ),
    Mutant(
        "losses/jensen_shannon.py",
        "share * from_teacher + (1 - share) * from_student",
        "(1 - share) * from_teacher + share * from_student",
        "JSD's weights swapped",
    ),
    Mutant(
        "losses/distances.py",
        "0.5 * jnp.sum(jnp.abs(difference), axis=-1), ",
        "jnp.sum(jnp.abs(difference), axis=-1), ",
        "total variation without its half",
    ),
    Mutant("losses/distances.py", "-0.25 / jnp", "-0.5 / jnp", "Hellinger's gradient doubled"),
    Mutant("losses/adaptive.py", "mass <= mu if boundary", "mass < 0.9 * mu if boundary", "AKL's head too small"),
    Mutant(
        "losses/adaptive.py",
        'above = p >= threshold if boundary == "tail" else p > threshold',
        "above = p > threshold",
        "AKL's boundary token on the wrong side",
    ),
    Mutant("losses/target.py", "pair_q[..., 0] < 0.5", "pair_q[..., 0] >= 0.0", "TCKD's gradient cancels"),
    Mutant(
        "losses/target.py",
        "jnp.where(target, -jnp.inf, log_probs - finite_rest[..., None])",
        "log_probs - finite_rest[..., None]",
        "NCKD keeps the target",
    ),
    Mutant(
        "losses/cross_entropy.py",
        "jnp.sum(jnp.where(vocabulary == token_ids.astype(jnp.int32)[..., None], values, 0.0), axis=-1)",
        "jnp.sum(jnp.where(vocabulary == token_ids.astype(jnp.int32)[..., None] + 1, values, 0.0), axis=-1)",
        "labels off by one",
    ),
    # Selection
    Mutant(
        "selection/verifiers.py",
        "(rank(teacher_logits, proposal) < k)",
        "(rank(teacher_logits, proposal) <= k)",
        "greedy k off by one",
    ),
    Mutant(
        "selection/verifiers.py",
        "proposal = best_token(student_logits)",
        "proposal = best_token(teacher_logits)",
        "the teacher verifies itself",
    ),
    Mutant("selection/verifiers.py", "(logits > logit)", "(logits >= logit)", "ties at the boundary rejected"),
    Mutant(
        "selection/verifiers.py",
        "jnp.min(jnp.where(is_best, token_ids, logits.shape[-1]), axis=-1)",
        "jnp.max(jnp.where(is_best, token_ids, -1), axis=-1)",
        "the highest of tied tokens proposed",
    ),
    Mutant("selection/verifiers.py", "jnp.minimum(p, q)", "jnp.maximum(p, q)", "overlap is not min(p, q)"),
    Mutant("selection/verifiers.py", "jnp.expm1(k * jnp.log1p", "jnp.expm1((k - 1) * jnp.log1p", "Spec-k off by one"),
    Mutant(
        "selection/verifiers.py",
        "jnp.minimum(log_p - log_q, 0.0)",
        "jnp.minimum(log_q - log_p, 0.0)",
        "speculative ratio upside down",
    ),
    Mutant("selection/verifiers.py", "teacher_logits) <= tau)", "teacher_logits) >= tau)", "Hellinger gate inverted"),
    Mutant("selection/weights.py", "floor + (1 - floor) * accepted", "accepted", "floor dropped"),
    Mutant("selection/weights.py", "(uniforms < acceptance)", "(uniforms > acceptance)", "draws inverted"),
    Mutant("selection/weights.py", "(1 - floor) * accepted", "accepted", "accepted tokens weigh more than 1"),
    Mutant(
        "selection/controls.py",
        "return 1.0 - verifier(student_logits, teacher_logits)\n",
        "return verifier(student_logits, teacher_logits)\n",
        "inverted gate not inverted",
    ),
    Mutant(
        "selection/scores.py",
        "losses.cross_entropy(logits, labels) - losses.cross_entropy(reference_logits, labels)",
        "losses.cross_entropy(reference_logits, labels) - losses.cross_entropy(logits, labels)",
        "excess loss with the wrong sign",
    ),
    Mutant(
        "selection/ranking.py",
        "jnp.lexsort((-scores, ~mask), axis=-1)",
        "jnp.lexsort((scores, ~mask), axis=-1)",
        "the lowest scores kept",
    ),
    Mutant(
        "selection/ranking.py",
        "jnp.lexsort((-scores, ~mask), axis=-1)",
        "jnp.argsort(-scores, axis=-1)",
        "masked positions take part in the ranking",
    ),
    Mutant("selection/ranking.py", "1.0 + jnp.floor(fraction", "jnp.floor(fraction", "quantile rule off by one"),
    Mutant("selection/ranking.py", "(jnp.sum(mask) - 1, 0) // 2", "(jnp.sum(mask), 0) // 2", "the upper median"),
    Mutant(
        "selection/rates.py",
        "jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1",
        "jnp.cumsum(mask.astype(jnp.int32), axis=-1)",
        "places in the response off by one",
    ),
    Mutant("selection/rates.py", "_count(lengths > 0)", "_count(lengths >= 0)", "empty sequences counted"),
    # The objective
    Mutant(
        "distill/sums.py",
        "valid / jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1.0)",
        "valid / valid.shape[-1]",
        "mean over padding",
    ),
    Mutant(
        "distill/sums.py",
        '"sequence": sequences, "token": tokens',
        '"sequence": tokens, "token": sequences',
        "normalisers swapped",
    ),
    Mutant("distill/sums.py", '"weight": weight}[', '"weight": tokens}[', "weight normaliser divides by tokens"),
    Mutant(
        "distill/sums.py",
        "jnp.sum((tokens_by_sequence > 0).astype(jnp.float32))",
        "jnp.float32(mask.shape[0])",
        "empty sequences in the divisor",
    ),
    Mutant(
        "distill/sums.py",
        "return jnp.sum(jnp.where(mask, values, 0.0))",
        "return jnp.sum(values)",
        "masked positions in the sums",
    ),
    Mutant(
        "distill/objective.py",
        "jnp.where(weight > 0, weight * divergence, 0.0)",
        "weight * divergence",
        "infinite divergence without weight gives NaN",
    ),
    Mutant("distill/objective.py", "jnp.where(weight > 0, weight * divergence, 0.0)", "divergence", "weights ignored"),
    Mutant(
        "distill/objective.py",
        "as_float32(logits) / self.temperature",
        "as_float32(logits) * self.temperature",
        "temperature multiplies",
    ),
    Mutant("distill/objective.py", "(1 - self.label_share) * loss", "loss", "label share added, not mixed"),
    Mutant(
        "distill/chunks.py",
        "cotangent.loss[..., None] * gradient",
        "gradient",
        "chunked gradient ignores its coefficients",
    ),
    Mutant("distill/chunks.py", "    if ragged:\n", "    if False:\n", "the ragged last chunk forgotten"),
    Mutant(
        "distill/two_stream.py",
        "2.0 * (1.0 - balance) * on_teacher.loss + 2.0 * balance * on_student.loss",
        "2.0 * balance * on_teacher.loss + 2.0 * (1.0 - balance) * on_student.loss",
        "balance the wrong way round",
    ),
    Mutant(
        "distill/distillm2.py",
        "likelihood(teacher_logits) - likelihood(student_logits)",
        "likelihood(student_logits) - likelihood(teacher_logits)",
        "confidence gap with the wrong sign",
    ),
    Mutant(
        "distill/distillm2.py",
        "(epoch + 1.0) / epochs + within",
        "epoch / epochs + within",
        "published balance counts epochs from 0",
    ),
    Mutant(
        "distill/vocabulary.py",
        "token_ids < tokenizer_size",
        "token_ids <= tokenizer_size",
        "one padding id left in the vocabulary",
    ),
    Mutant(
        "distill/static_key.py",
        "tuple((name, static_key(option)) for name, option in sorted(value.keywords.items()))",
        "()",
        "objectives with different options compare equal",
    ),
    Mutant(
        "distill/fused_head.py",
        'jnp.where(live, per_token["coefficient"], 0.0)',
        'per_token["coefficient"]',
        "rows that fill up a chunk count, too",
    ),
    Mutant(
        "distill/fused_head.py",
        "jnp.where(leaf == 0, leaf, slope * leaf)",
        "leaf",
        "fused gradient ignores its cotangent",
    ),
    Mutant(
        "distill/sweep.py",
        'chunks("rest", whole, count,',
        'chunks("rest", count, count,',
        "the last, smaller chunks forgotten",
    ),
    Mutant(
        "distill/sweep.py",
        "order = jnp.where(jnp.arange(slots) < count, order, order[0])",
        "order = order",
        "positions outside the mask fill up a chunk",
    ),
    Mutant("distill/sweep.py", "live & (values.weight > 0)", "live & (values.weight > 1)", "everything skipped"),
    Mutant(
        "distill/sweep.py",
        "index * block_size + jnp.arange(block_size) < count",
        "jnp.ones((block_size,), bool)",
        "skipping counts the first row again",
    ),
    Mutant("distill/head_products.py", "if ragged else total", "if False else total", "the last columns forgotten"),
    Mutant(
        "distill/placed_sweep.py",
        "        matrix = jax.lax.psum(matrix, axes)\n    if axes:\n",
        "        pass\n    if axes:\n",
        "the head's gradient not summed over devices",
    ),
    Mutant("distill/placed_sweep.py", "total = jax.lax.psum(total, axes)", "pass", "the loss not summed over devices"),
    # Found by review, and held since
    Mutant(
        "losses/skew.py",
        "jnp.where(alpha > 0, q * ratio(p, m), p)",
        "q * ratio(p, m)",
        "a skew of zero forgets tokens that underflow",
    ),
    Mutant("losses/adaptive.py", " | (mu >= 1)", "", "all mass in the head, but for rounding"),
    Mutant(
        "distill/distillm2.py",
        "(step // steps_per_epoch).astype(jnp.float32)",
        "jnp.floor(step.astype(jnp.float32) / steps_per_epoch)",
        "epochs begin late when compiled",
    ),
    Mutant(
        "distill/distillm2.py", "(epoch + within) / epochs", "(epoch + 1.0 + within) / epochs", "smooth balance early"
    ),
    Mutant("distill/distillm2.py", "0.5 + 0.25 * jnp", "0.5 + 0.5 * jnp", "released balance rises to 1"),
    Mutant("distill/distillm2.py", "1.0 - (1.0 - base) *", "1.0 - base *", "adaptive skew from the wrong base"),
    Mutant(
        "distill/objective.py",
        "jnp.where(mask[..., None], logits, jnp.zeros((), logits.dtype))",
        "logits",
        "junk outside the mask reaches the gradient",
    ),
    Mutant("distill/sums.py", "jnp.where(count > 0, count, 1.0)", "count", "the mean of nothing is NaN"),
    Mutant(
        "selection/scores.py",
        "jnp.exp(log_rest(log_probs, is_target(log_probs, labels)))",
        "1.0 - jnp.exp(losses.cross_entropy(logits, labels) * -1.0)",
        "no digits in a sure teacher's uncertainty",
    ),
]
