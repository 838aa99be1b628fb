"""Ways to break the objective, the fused head and their sums over devices."""

from tests.mutation.mutant import Mutant

MUTANTS = [
    Mutant(
        "distill/_sums.py",
        "valid / jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1.0)",
        "valid / valid.shape[-1]",
        "mean over padding",
    ),
    Mutant(
        "distill/_sums.py",
        '"sequence": sequences, "token": tokens',
        '"sequence": tokens, "token": sequences',
        "normalisers swapped",
    ),
    Mutant("distill/_sums.py", '"weight": weight}[', '"weight": tokens}[', "weight normaliser divides by tokens"),
    Mutant(
        "distill/_sums.py",
        "jnp.sum((tokens_by_sequence > 0).astype(jnp.float32))",
        "jnp.float32(mask.shape[0])",
        "empty sequences in the divisor",
    ),
    Mutant(
        "distill/_sums.py",
        "return jnp.sum(jnp.where(mask, values, 0.0))",
        "return jnp.sum(values)",
        "masked positions in the sums",
    ),
    Mutant(
        "distill/_objective.py",
        "jnp.where(weight <= 0, 0.0, weight * divergence)",
        "weight * divergence",
        "infinite divergence without weight gives NaN",
    ),
    Mutant(
        "distill/_objective.py", "jnp.where(weight <= 0, 0.0, weight * divergence)", "divergence", "weights ignored"
    ),
    Mutant(
        "distill/_objective.py",
        "as_float32(logits) / self.temperature",
        "as_float32(logits) * self.temperature",
        "temperature multiplies",
    ),
    Mutant("distill/_objective.py", "(1 - self.label_share) * loss", "loss", "label share added, not mixed"),
    Mutant(
        "distill/_chunks.py",
        "cotangent.loss[..., None] * gradient",
        "gradient",
        "chunked gradient ignores its coefficients",
    ),
    Mutant("distill/_chunks.py", "    if ragged:\n", "    if False:\n", "the ragged last chunk forgotten"),
    Mutant(
        "distill/_two_stream.py",
        "2.0 * (1.0 - balance) * on_teacher.loss + 2.0 * balance * on_student.loss",
        "2.0 * balance * on_teacher.loss + 2.0 * (1.0 - balance) * on_student.loss",
        "balance the wrong way round",
    ),
    Mutant(
        "distill/_distillm2.py",
        "likelihood(teacher_logits) - likelihood(student_logits)",
        "likelihood(student_logits) - likelihood(teacher_logits)",
        "confidence gap with the wrong sign",
    ),
    Mutant(
        "distill/_distillm2.py",
        "(epoch + 1.0) / epochs + within",
        "epoch / epochs + within",
        "published balance counts epochs from 0",
    ),
    Mutant(
        "distill/_vocabulary.py",
        "token_ids < tokenizer_size",
        "token_ids <= tokenizer_size",
        "one padding id left in the vocabulary",
    ),
    Mutant(
        "distill/_static_key.py",
        "tuple((name, static_key(option)) for name, option in sorted(value.keywords.items()))",
        "()",
        "objectives with different options compare equal",
    ),
    Mutant(
        "distill/_fused_head.py",
        'jnp.where(live, per_token["coefficient"], 0.0)',
        'per_token["coefficient"]',
        "rows that fill up a chunk count, too",
    ),
    Mutant(
        "distill/_fused_head.py",
        "jnp.where(leaf == 0, leaf, slope * leaf)",
        "leaf",
        "fused gradient ignores its cotangent",
    ),
    Mutant(
        "distill/_sweep.py",
        'chunks("rest", whole, count,',
        'chunks("rest", count, count,',
        "the last, smaller chunks forgotten",
    ),
    Mutant(
        "distill/_sweep.py",
        "order = jnp.where(jnp.arange(slots) < count, order, order[0])",
        "order = order",
        "positions outside the mask fill up a chunk",
    ),
    Mutant("distill/_sweep.py", "~(values.weight <= 0)", "~(values.weight <= 1)", "everything skipped"),
    Mutant(
        "distill/_sweep.py",
        "index * block_size + jnp.arange(block_size) < count",
        "jnp.ones((block_size,), bool)",
        "skipping counts the first row again",
    ),
    Mutant("distill/_head_products.py", "if ragged else total", "if False else total", "the last columns forgotten"),
    Mutant(
        "distill/_placed_sweep.py",
        "        matrix = jax.lax.psum(matrix, axes)\n    if axes:\n",
        "        pass\n    if axes:\n",
        "the head's gradient not summed over devices",
    ),
    Mutant("distill/_placed_sweep.py", "total = jax.lax.psum(total, axes)", "pass", "the loss not summed over devices"),
    # Found by review, and held since
    Mutant(
        "distill/_distillm2.py",
        "(step // steps_per_epoch).astype(jnp.float32)",
        "jnp.floor(step.astype(jnp.float32) / steps_per_epoch)",
        "epochs begin late when compiled",
    ),
    Mutant(
        "distill/_distillm2.py", "(epoch + within) / epochs", "(epoch + 1.0 + within) / epochs", "smooth balance early"
    ),
    Mutant("distill/_distillm2.py", "0.5 + 0.25 * jnp", "0.5 + 0.5 * jnp", "released balance rises to 1"),
    Mutant("distill/_distillm2.py", "1.0 - (1.0 - base) *", "1.0 - base *", "adaptive skew from the wrong base"),
    Mutant(
        "distill/_objective.py",
        "jnp.where(mask[..., None], logits, jnp.zeros((), logits.dtype))",
        "logits",
        "junk outside the mask reaches the gradient",
    ),
    Mutant("distill/_sums.py", "jnp.where(count <= 0, 1.0, count)", "count", "the mean of nothing is NaN"),
    # Guards: what stands where a formula alone would give NaN, infinity or noise
    Mutant(
        "distill/_objective.py", "jnp.where(weight <= 0, 0.0,", "jnp.where(weight > 0, 0.0,", "rejected tokens learn"
    ),
    Mutant(
        "distill/_objective.py",
        "jnp.where(weight <= 0, 0.0, weight * divergence)",
        "jnp.where(weight > 0, weight * divergence, 0.0)",
        "a weight of NaN counts as none",
    ),
    Mutant(
        "distill/_sums.py",
        "jnp.sum(accepted_by_sequence / jnp.maximum(tokens_by_sequence, 1.0))",
        "jnp.sum(accepted_by_sequence / tokens_by_sequence)",
        "an empty sequence makes the accepted fraction NaN",
    ),
    Mutant(
        "distill/_distillm2.py",
        "jnp.where(jnp.isnan(alpha), high, alpha)",
        "alpha",
        "a gap of nothing has no skew",
    ),
    Mutant(
        "distill/_distillm2.py", "astype(jnp.float32), 1.0)", "astype(jnp.float32), 0.0)", "an empty response's gap"
    ),
    # Boundaries: the number at which a rule changes
    Mutant("distill/_distillm2.py", "self.batches < window", "self.batches <= window", "the window one batch longer"),
    Mutant("distill/_distillm2.py", "/ epochs, 0.5, 1.0)", "/ epochs, 0.0, 1.0)", "smooth balance below 1/2"),
    Mutant(
        "distill/_fused_head.py",
        "not 1 <= vocab_size <= min(widths)",
        "not 1 <= vocab_size <= max(widths)",
        "more ids than the narrower head has",
    ),
    Mutant(
        "distill/_objective.py",
        '0.0 < self.temperature < float("inf")',
        '0.0 <= self.temperature < float("inf")',
        "a temperature of 0",
    ),
    # Which argument
    Mutant(
        "distill/_objective.py",
        "self.label_share * cross_entropy(student_logits, labels)",
        "self.label_share * cross_entropy(self._tempered(student_logits, temperature), labels)",
        "the cross-entropy term tempered",
    ),
    Mutant(
        "distill/_objective.py",
        'self.verifier, "verifier", student_logits,',
        'self.verifier, "verifier", self._tempered(student_logits, temperature),',
        "the verifier sees tempered logits",
    ),
    Mutant(
        "distill/_objective.py",
        "self._tempered(teacher_logits, temperature)\n",
        "teacher_logits\n",
        "the teacher not tempered",
    ),
    Mutant(
        "distill/_fused_head.py",
        "mask_vocabulary(student_logits, vocab_size), None",
        "student_logits, None",
        "without a teacher padding ids count",
    ),
    Mutant(
        "distill/_fused_head.py",
        "objective.floor > 0 or objective.label_share > 0",
        "objective.floor > 0",
        "rejected labels skipped",
    ),
    Mutant("distill/_sums.py", "divergence=total(terms.divergence)", "divergence=total(terms.loss)", "weighted report"),
    Mutant("distill/_two_stream.py", "count=0.5 *", "count=", "two streams divided by twice their count"),
    Mutant(
        "distill/_sweep.py",
        "return total + value, jax.tree.map(_putter(start), results, values), z",
        "return value, jax.tree.map(_putter(start), results, values), z",
        "the rows before the last forgotten",
    ),
    Mutant(
        "distill/_head_products.py", "result + model.bias.astype(result.dtype)[None]", "result", "the bias forgotten"
    ),
    Mutant("distill/_static_key.py", "return (type(value), value)", "return value", "1 and True are one option"),
    # Which devices' sums
    Mutant("distill/_placed_sweep.py", "bias = jax.lax.psum(bias, axes)", "pass", "the bias's gradient of one device"),
    Mutant(
        "distill/_placed_sweep.py",
        "jax.lax.psum(matrix, axes_left) if axes_left else matrix",
        "matrix",
        "the head's gradient summed over one of two axes",
    ),
    Mutant(
        "distill/_placed_sweep.py",
        "return axis if devices > 1 and student.matrix.shape[axis] % devices == 0 else None",
        "return axis if devices > 1 else None",
        "a head scattered that does not divide",
    ),
    Mutant(
        "distill/_placed_sweep.py",
        "    if rows % devices:\n",
        "    if False:\n",
        "rows that do not divide over devices",
    ),
    Mutant(
        "distill/_placed_sweep.py",
        "return vary_alike(found, like=(student, teacher, per_token, mask))",
        "return found",
        "types lost within a shard_map of the caller",
    ),
    Mutant(
        "distill/_fused_head.py",
        "    student, teacher, per_token, mask = vary_alike(inputs, like=inputs)\n",
        "",
        "the head's gradient of one device of a shard_map",
    ),
    Mutant(
        "distill/_chunks.py",
        "    student_logits, rest = vary_alike((student_logits, rest), like=(student_logits, rest))\n",
        "",
        "a chunked gradient of one device of a shard_map",
    ),
    Mutant(
        "distill/_objective.py",
        "_weighed(lowest * (1 - accepted), on_rejected)",
        "_weighed(lowest * accepted, on_rejected)",
        "the divergence of rejected tokens on accepted ones",
    ),
    Mutant(
        "distill/_objective.py",
        "loss = _weighed(accepted, divergence) + ",
        "loss = _weighed(weight, divergence) + ",
        "rejected tokens learn by both divergences",
    ),
    Mutant(
        "distill/_objective.py",
        "self.floor if floor is None else",
        "self.floor if True else",
        "schedules of the floor ignored",
    ),
    Mutant(
        "distill/_shadows.py",
        "if is_random(shadow) or is_random(verifier):",
        "if False:",
        "a random gate shares its luck with the verifier in force",
    ),
    Mutant("distill/_sums.py", "+ shadow.both\n", "\n", "what both accept counted as neither's"),
    Mutant("distill/_schedules.py", "max(self.steps - 1, 1)", "self.steps", "a schedule that never reaches its end"),
]
